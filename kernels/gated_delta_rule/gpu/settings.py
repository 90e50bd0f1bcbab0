"""Launch settings by architecture, and the versions of Triton that are refused.

Nothing is tuned at run time and nothing depends on the length: a batch of another length must not compile anew, and two
runs must not pick different sums. What counts is how much work a multiprocessor has at once: a program that keeps all
of its numbers in registers and has the multiprocessor to itself waits for every load. At head sizes 96/192 and 128/128
at most 96 bytes a thread do not fit into the registers; tests/kernels/gated_delta_rule/test_triton_compiled.py
holds that and the programs per multiprocessor, benchmarks/kernel_counts.py makes the counts.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor


class Launch(NamedTuple):
    """Warps of a program; stages of the loads of its loop, where it has one; the most registers of a thread, where the
    compiler would take so many that a multiprocessor holds fewer programs."""

    warps: int
    stages: int = 1
    max_registers: int | None = None

    def options(self) -> dict[str, int]:
        """What Triton is told at the launch."""
        limit = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {"num_warps": self.warps, **limit}


@dataclass(frozen=True)
class Settings:
    """A ``Launch`` for each kernel, and:

    block   V columns of a state tile; gradient_block, those of a step of the gradients' products
    alone   ``forward``, where each program has a multiprocessor and all of its memory to itself
    halves  a scan takes K = 128 as 64 + 64
    apart   see scans._read
    """

    block: int
    gradient_block: int
    halves: bool
    apart: bool
    weights: Launch
    forward: Launch
    alone: Launch
    summary: Launch
    join: Launch
    backward: Launch
    summary_backward: Launch
    query: Launch
    key: Launch


# 64 rows for the four warps of a warp-group product; a warp each for the inverse's four blocks of 16.
HOPPER = Settings(
    block=64,
    gradient_block=64,
    halves=True,
    apart=False,
    weights=Launch(4, max_registers=128),
    forward=Launch(4, stages=2),
    alone=Launch(4, stages=3),
    summary=Launch(4, stages=2),
    join=Launch(4),
    backward=Launch(4, stages=2),
    summary_backward=Launch(4, stages=2),
    query=Launch(4, stages=3),
    key=Launch(4, stages=3),
)
AMPERE = Settings(
    block=32,
    gradient_block=32,
    halves=False,
    apart=False,
    weights=Launch(8),
    forward=Launch(8),
    alone=Launch(8),
    summary=Launch(8),
    join=Launch(4),
    backward=Launch(8),
    summary_backward=Launch(8, stages=2),
    query=Launch(8, stages=2),
    key=Launch(8, stages=2),
)
# One stage: with two, an accumulator that is carried through a loop and read by another product
# is wrong (triton#10993).
BLACKWELL = Settings(
    block=64,
    gradient_block=64,
    halves=True,
    apart=True,
    weights=Launch(4),
    forward=Launch(8),
    alone=Launch(8),
    summary=Launch(8),
    join=Launch(4),
    backward=Launch(8),
    summary_backward=Launch(8),
    query=Launch(8),
    key=Launch(8),
)
BY_ARCH = {80: AMPERE, 86: AMPERE, 89: AMPERE, 90: HOPPER, 100: BLACKWELL, 103: BLACKWELL, 120: AMPERE}

OLDEST = (3, 6)
# On Hopper kernels of several products with tiles of 32 columns, as K = 96 makes ours, have read past their shared
# memory with 3.6.0 to 3.7.1 (triton#10573, #11366). Nothing newer was there to ask for: trusted.py finds out before
# training. (architectures, first version, version without it, what goes wrong)
MISCOMPILED = [((103,), (3, 6), (3, 8), "products into an accumulator that a loop carries race (triton#10590)")]


def settings(arch: int) -> Settings:
    """For ``arch`` = 10 * major + minor; the settings of the newest one before it where it is not known."""
    return BY_ARCH[max((a for a in BY_ARCH if a <= arch), default=80)]


def settings_for(x: Tensor) -> Settings:
    """Raises RuntimeError, one line, where this Triton's code for this device is known to be wrong."""
    if not x.is_cuda:
        return settings(90)
    major, minor = torch.cuda.get_device_capability(x.device)
    refuse(10 * major + minor, triton.__version__)
    return settings(10 * major + minor)


@lru_cache
def refuse(arch: int, version: str) -> None:
    number = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if arch < 80:
        raise RuntimeError(f"sm_{arch}: the gated delta rule needs a GPU of compute capability 8.0 or newer")
    if number < OLDEST:
        raise RuntimeError(f"triton {version} is older than 3.6, the oldest that is tested; pip install 'triton>=3.6'")
    for archs, first, fixed, what in MISCOMPILED:
        if arch in archs and first <= number < fixed:
            raise RuntimeError(
                f"triton {version} on sm_{arch}: {what}; pip install 'triton>={fixed[0]}.{fixed[1]}' or a torch that has it"
            )
