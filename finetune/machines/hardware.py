"""Checks of the machine before anything is loaded: GPUs, bfloat16, open files, shared memory."""

from __future__ import annotations

import os
import resource
import shutil

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.runs import device
from hybrid_ft.finetune.runs.processes import number_told

OPEN_FILES = 1024
SHARED_MEMORY = 64_000_000
"""bytes: a container's usual 64 MiB are enough for the integers of a batch"""
SHARED = "/dev/shm"


def check_hardware(bfloat16: bool, workers: int) -> None:
    """Raise InputError, status 3, where this machine cannot do what is asked of it.

    bfloat16  the recipe asks for it by name
    workers   processes that load data, for each process that trains
    """
    if device.is_gpu():
        _check_gpus(bfloat16)
    if workers:
        _check_workers(workers)


def _check_gpus(bfloat16: bool) -> None:
    wanted, there = number_told("LOCAL_WORLD_SIZE", 1), device.count()
    if wanted > there:
        raise InputError(
            f"{wanted} processes were started on this machine and it has {there} GPU{'s' * (there != 1)}; "
            f"each process needs its own: start {there}",
            ENVIRONMENT,
        )
    if bfloat16 and not device.has_bfloat16():
        raise InputError(
            f"model.dtype: bfloat16 is not in the hardware of {device.name()}; set model.dtype: float32, or "
            "use a GPU of compute capability 8.0 or later",
            ENVIRONMENT,
        )


def _check_workers(workers: int) -> None:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < OPEN_FILES:
        raise InputError(
            f"train.loader_workers: {workers} loader workers need {OPEN_FILES:,} open files, and a process may have "
            f"{files:,} here; "
            f"run ulimit -n {OPEN_FILES} first, or set train.loader_workers: 0",
            ENVIRONMENT,
        )
    if not os.path.isdir(SHARED):
        return
    size = shutil.disk_usage(SHARED).total
    if size < SHARED_MEMORY:
        raise InputError(
            f"train.loader_workers: {workers} loader workers hand over batches in {SHARED}, which has {size:,} bytes "
            f"and must have "
            f"{SHARED_MEMORY:,}; start the container with more (--shm-size), or set train.loader_workers: 0",
            ENVIRONMENT,
        )
