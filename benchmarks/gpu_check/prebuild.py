"""Compiles all that the check launches, first and on all cores.

Triton compiles one kernel at a time when it is first launched: the delta rule's take 25 seconds for each set of head
sizes, flash-linear-attention's 89 configurations three minutes. The launches are recorded on the CPU, with tensors that
are never touched and not kept, since a process that holds gigabytes may not fork, and compiled in forked processes,
none of which opens the GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from importlib import import_module
from typing import Any

import launched
from recording import Launch, pretending, recorded
from rows import Rows
from variants import variants

_todo: list[Launch] = []
_OF_BOTH = {"delta rule": launched.delta_rule, "self-test": launched.self_test, "model": launched.model}


def for_part_1(rows: Rows, dry: bool) -> None:
    own = {"quickstart": launched.quickstart, "layer kernels": launched.layer_kernels}
    _compile(rows, dry, _OF_BOTH | own, with_variants=True)


def for_part_2(rows: Rows, dry: bool) -> None:
    _compile(rows, dry, _OF_BOTH | {"rivals": launched.rivals}, with_variants=False)


def _compile(rows: Rows, dry: bool, sets: dict[str, Any], with_variants: bool) -> None:
    found: dict[tuple[Any, ...], Launch] = {}
    # bitsandbytes, which PEFT imports where it is, would ask the pretended GPU for what torch's CPU build lacks
    import_module("peft")
    with pretending():
        for name, call in sets.items():
            began = time.monotonic()
            with rows.attempt(f"{name}: recorded", wrong=dry), recorded(run=False, light=True) as launches:
                call(dry)
                more = [changed for x in launches for _, changed in variants(x)] if name == "delta rule" else []
                for launch in [*launches, *(more if with_variants else [])]:
                    found.setdefault(launch.key(), launch)
                rows.add(f"{name}: recorded", time.monotonic() - began, "s", note=f"{len(launches)} launches")
        _todo[:] = found.values()
        began = time.monotonic()
        workers = os.cpu_count() or 1
        wanted = range(0, len(_todo), max(1, len(_todo) // 2)) if dry else range(len(_todo))
        with multiprocessing.get_context("fork").Pool(min(workers, 16 if not dry else 1)) as pool:
            taken = list(pool.imap_unordered(_compile_one, wanted))
    seconds = time.monotonic() - began
    for name, _, failed in taken:
        if failed:
            rows.add(f"compile {name}", failed=failed)
    slowest = max(taken, key=lambda one: one[1])
    note = f"{len(taken)} kernels on {workers} cores, {sum(one[1] for one in taken):.0f} CPU seconds"
    note += f"; slowest {slowest[0]} {slowest[1]:.0f} s"
    rows.add("compiled", seconds, "s", note=note)


def _compile_one(number: int) -> tuple[str, float, str | None]:
    launch, began, failed = _todo[number], time.monotonic(), None
    try:
        launch.kernel.run(*launch.args, grid=launch.grid, warmup=True, **launch.options)
    except Exception as error:  # noqa: BLE001
        failed = f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}"[:200]
    return launch.name, time.monotonic() - began, failed
