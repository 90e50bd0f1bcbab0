"""Collective operations with known results, in processes of their own that a watchdog ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hybrid_ft.finetune.data.scratch import Scratch
from hybrid_ft.finetune.doctor.finding import Finding

SECONDS = 60.0
_WRONG = 7
"""status of a process that got another result than the known one"""
_NUMBERS = 2**24


def check(gpus: int, seconds: float = SECONDS) -> Finding:
    """As many processes as GPUs over NCCL; two over gloo where there are fewer. Once more without
    P2P where it fails."""
    backend, count = ("nccl", gpus) if gpus > 1 else ("gloo", 2)
    began = time.perf_counter()
    wrong = run_workers(worker(backend), count, seconds)
    took = time.perf_counter() - began
    name = f"{count} processes, {backend}"
    if wrong is None:
        return Finding("collectives", f"{name}: the known sums, {took:.0f} s")
    if backend == "nccl":
        again = run_workers(worker(backend), count, seconds, {"NCCL_P2P_DISABLE": "1"})
        if again is None:
            return Finding("collectives", f"{name}: {wrong}; without P2P right: set NCCL_P2P_DISABLE=1", red=True)
    return Finding("collectives", f"{name}: {wrong}; take another machine", red=True)


def worker(backend: str) -> list[str]:
    return [sys.executable, "-m", "hybrid_ft.finetune.doctor.collectives", backend]


def run_workers(command: Sequence[str], count: int, seconds: float, more: dict[str, str] | None = None) -> str | None:
    """Start ``count`` of them, each with its rank, their number and a file to meet in. What is wrong, or None.

    Whatever runs after ``seconds`` is killed: a collective that hangs cannot end by itself.
    """
    with Scratch() as place:
        environment = os.environ | (more or {})
        started = [
            subprocess.Popen(
                [*command, str(rank), str(count), str(Path(place) / "meet")],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for rank in range(count)
        ]
        ends = time.monotonic() + seconds
        try:
            while time.monotonic() < ends:
                statuses = [one.poll() for one in started]
                # where one has failed the others wait for it
                if any(statuses) or None not in statuses:
                    break
                time.sleep(0.05)
        finally:
            hung = [rank for rank, one in enumerate(started) if one.poll() is None]
            for one in started:
                one.kill()
                one.wait()
    failed = [rank for rank, one in enumerate(started) if one.returncode and rank not in hung]
    if any(started[rank].returncode == _WRONG for rank in failed):
        return "another sum than the known one"
    if failed:
        return f"process {failed[0]} failed with status {started[failed[0]].returncode}"
    return f"no answer in {seconds:.0f} s from {', '.join(map(str, hung))}" if hung else None


def main(arguments: Sequence[str]) -> int:
    """One process: sums and gathers of numbers that name their process."""
    import torch
    import torch.distributed as dist

    backend, rank, count, file = arguments[0], int(arguments[1]), int(arguments[2]), arguments[3]
    if backend == "nccl":
        torch.cuda.set_device(rank)
    place = f"cuda:{rank}" if backend == "nccl" else "cpu"
    numbers = _NUMBERS if backend == "nccl" else 2**16
    dist.init_process_group(backend, init_method=f"file://{file}", rank=rank, world_size=count)
    mine = torch.full((numbers,), float(rank + 1), device=place)
    total = mine.clone()
    dist.all_reduce(total)
    parts = [torch.empty_like(mine) for _ in range(count)]
    dist.all_gather(parts, mine)
    right = bool((total == count * (count + 1) / 2).all())
    right &= all(bool((part == number + 1).all()) for number, part in enumerate(parts))
    if backend == "nccl":
        piece = torch.empty(numbers // count, device=place)
        dist.reduce_scatter_tensor(piece, mine[: numbers // count * count].contiguous())
        right &= bool((piece == count * (count + 1) / 2).all())
    dist.destroy_process_group()
    return 0 if right else _WRONG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
