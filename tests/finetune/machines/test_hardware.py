"""What a machine lacks is said in one line with status 3."""

import resource
import shutil
from collections import namedtuple

import pytest
import torch

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.machines import hardware
from hybrid_ft.finetune.machines.hardware import check_hardware

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    def be(gpus=0, bfloat16=True, processes=None, files=(4096, 4096), shared=10**9):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
        # torch counts a slow emulation as support unless told not to
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16 or including_emulation
        )
        monkeypatch.setattr(resource, "getrlimit", lambda which: files)
        monkeypatch.setattr(hardware, "SHARED", str(tmp_path))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(shared, 0, shared))
        if processes is None:
            monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        else:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))

    return be


def refused(bfloat16: bool = False, workers: int = 0) -> tuple[str, int] | None:
    """The line and the exit status, if the machine lacks anything."""
    try:
        check_hardware(bfloat16, workers)
    except InputError as error:
        return str(error), error.status
    return None


@pytest.mark.parametrize(
    ("has", "asks", "said"),
    [
        (
            {"gpus": 1, "bfloat16": False},
            {"bfloat16": True},
            (
                "model.dtype: bfloat16 is not in the hardware of Tesla T4; set model.dtype: float32, or use a GPU of compute "
                "capability 8.0 or later"
            ),
        ),
        (
            {"gpus": 1, "processes": 2},
            {},
            "2 processes were started on this machine and it has 1 GPU; each process needs its own: start 1",
        ),
        (
            {"gpus": 3, "processes": 4},
            {},
            "4 processes were started on this machine and it has 3 GPUs; each process needs its own: start 3",
        ),
        (
            {"files": (1023, 4096)},
            {"workers": 2},
            (
                "train.loader_workers: 2 loader workers need 1,024 open files, and a process may have 1,023 here; run ulimit -n 1024 "
                "first, or set train.loader_workers: 0"
            ),
        ),
        (
            {"shared": 63_999_999},
            {"workers": 2},
            (
                "train.loader_workers: 2 loader workers hand over batches in {}, which has 63,999,999 bytes and must have 64,000,000; "
                "start the container with more (--shm-size), or set train.loader_workers: 0"
            ),
        ),
    ],
)
def test_what_is_lacking_is_said(machine, tmp_path, has, asks, said):
    machine(**has)
    assert refused(**asks) == (said.format(tmp_path), 3)


@pytest.mark.parametrize(
    ("has", "asks"),
    [
        ({"gpus": 1}, {"bfloat16": True}),
        ({"gpus": 1, "bfloat16": False}, {}),
        ({"gpus": 0, "bfloat16": False}, {"bfloat16": True}),
        ({"gpus": 2, "processes": 2}, {}),
        ({"gpus": 0, "processes": 4}, {}),
        ({"files": (1024, 4096), "shared": 64_000_000}, {"workers": 2}),
        ({"files": (resource.RLIM_INFINITY, resource.RLIM_INFINITY)}, {"workers": 2}),
        ({"files": (256, 256), "shared": 1}, {}),
    ],
)
def test_what_is_there_passes(machine, has, asks):
    machine(**has)
    assert refused(**asks) is None
