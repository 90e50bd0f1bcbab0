"""Shared by the GPU benchmarks: sizes, alternating runs, times, memory, records."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

WARM_UP = 3  # turns in which kernels compile and tune
LEAST_TURNS = 5


class Red(Exception):
    """A correctness check failed: no time of this part may be shown."""


class Skipped(Exception):
    """Their side is left out, for the reason given."""


@dataclass(frozen=True)
class Setting:
    """Olmo Hybrid 7B on a GPU; with ``smoke`` the tiny preset on a CPU, to go through the code.

    seconds  after which a part takes no more turns than LEAST_TURNS
    alone    why their side is left out: with both, the process broke
    """

    smoke: bool
    turns: int
    seconds: float
    alone: str = ""

    def admit_theirs(self) -> None:
        if self.alone:
            raise Skipped(self.alone)

    @property
    def device(self) -> str:
        return "cpu" if self.smoke else "cuda"

    @property
    def preset(self) -> str:
        return "tiny" if self.smoke else "7B"

    @property
    def tokens(self) -> int:
        return 128 if self.smoke else 32768

    @property
    def heads(self) -> tuple[int, int, int]:
        """H, K and V of the delta rule."""
        return (2, 32, 64) if self.smoke else (30, 96, 192)

    @property
    def lengths(self) -> list[int]:
        return [64, 128] if self.smoke else [2048 << i for i in range(7)]

    @property
    def prompt_and_new(self) -> tuple[int, int]:
        return (8, 4) if self.smoke else (512, 128)


class Clock:
    """Called at the start of a turn and after each of its phases."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.marks: list[Any] = []

    def __call__(self) -> None:
        if self.on_gpu:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self.marks.append(mark)

    def phases(self) -> list[float]:
        """Milliseconds between the marks."""
        pairs = list(zip(self.marks, self.marks[1:]))
        if self.on_gpu:
            torch.cuda.synchronize()
            return [start.elapsed_time(end) for start, end in pairs]
        return [(end - start) * 1e3 for start, end in pairs]


Turn = Callable[[Clock], None]


@dataclass
class Taken:
    """One side's turns: milliseconds of each phase, and the most memory allocated during one; or why there are none."""

    phases: list[list[float]] = field(default_factory=list)
    peak: int | None = None
    failed: str | None = None

    def times(self, phase: int | None = None) -> list[float]:
        """Of one phase, or of all together."""
        return [sum(turn) if phase is None else turn[phase] for turn in self.phases]


def side_by_side(setting: Setting, sides: dict[str, Turn], may_fail: Sequence[str] = ("theirs",)) -> dict[str, Taken]:
    """Let the sides take turns in one process. What goes wrong on a side that ``may_fail`` costs that side alone."""
    if setting.device == "cuda":
        gc.collect()  # what the correctness check has left would count as memory of both
        torch.cuda.empty_cache()
    taken = {name: Taken() for name in sides}
    began = time.monotonic()
    for number in range((1 if setting.smoke else WARM_UP) + setting.turns):
        warm_up = number < (1 if setting.smoke else WARM_UP)
        if not warm_up and number >= WARM_UP + LEAST_TURNS and time.monotonic() - began > setting.seconds:
            break
        for name, turn in sides.items():
            if taken[name].failed is None:
                _take(setting, turn, taken[name], warm_up, may_fail=name in may_fail)
    return taken


def _take(setting: Setting, turn: Turn, taken: Taken, warm_up: bool, may_fail: bool) -> None:
    on_gpu, clock = setting.device == "cuda", Clock(setting.device)
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    try:
        clock()
        turn(clock)
        phases = clock.phases()
    except Exception as error:
        if not may_fail:
            raise
        taken.failed, taken.phases = in_short(error), []
        if on_gpu:
            torch.cuda.empty_cache()
        return
    if not warm_up:
        taken.phases.append(phases)
        if on_gpu:
            taken.peak = max(taken.peak or 0, torch.cuda.max_memory_allocated())


def in_short(error: BaseException) -> str:
    """One line that fits into a cell."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name.split('.')[0]} is not installed"
    lines = str(error).strip().splitlines()
    if isinstance(error, Skipped):
        return lines[0]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:120]


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def record(ours: list[float], theirs: list[float] | str, more_is_better: bool = False, **rest: Any) -> dict[str, Any]:
    """A row's numbers; ``theirs`` may be the reason why there are none. The ratio is paired, turn by turn, and above 1
    where ours is the better side."""
    made: dict[str, Any] = {"ours": spread(ours), "turns": len(ours), **rest}
    if isinstance(theirs, str):
        return made | {"theirs": theirs}
    pairs = [(own / other, other / own) for own, other in zip(ours, theirs)]
    ratio = statistics.median(pair[0 if more_is_better else 1] for pair in pairs)
    share = statistics.median(pair[0] for pair in pairs)
    return made | {"theirs": spread(theirs), "ratio": ratio, "share": share}


def other(taken: dict[str, Taken], absent: str, convert: Callable[[Taken], list[float] | None]) -> list[float] | str:
    """Their numbers, or why there are none."""
    if "theirs" not in taken:
        return absent
    side = taken["theirs"]
    return side.failed or convert(side) or "not measured"
