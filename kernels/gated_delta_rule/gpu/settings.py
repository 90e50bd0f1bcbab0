"""Launch settings by architecture, and the versions of Triton that are refused.

Nothing is tuned at run time and nothing depends on the length: a batch of another length must not compile anew, and two
runs must not pick different sums. What stands here compiles without spilled registers at head sizes 96/192 and 128/128
in 16 bits; tests/kernels/gated_delta_rule/test_triton_compiled.py holds it to that.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton
from torch import Tensor


@dataclass(frozen=True)
class Settings:
    """Warps per program and stages of a loop's loads, by kernel; and:

    block   V columns of a state tile; gradient_block, those of a step of the gradients' products
    halves  a scan takes K = 128 as 64 + 64
    apart   see scans._read
    """

    block: int
    gradient_block: int
    halves: bool
    apart: bool
    weights_warps: int
    inverse_warps: int
    forward_warps: int
    forward_stages: int
    backward_warps: int
    backward_stages: int
    summary_warps: int
    summary_backward_stages: int
    query_warps: int
    query_stages: int
    key_warps: int
    key_stages: int


# 64 rows for the four warps of a warp-group product; two stages leave room for two programs on a multiprocessor.
HOPPER = Settings(64, 64, True, False, 4, 4, 4, 2, 8, 2, 4, 2, 8, 2, 8, 2)
AMPERE = Settings(32, 32, False, False, 4, 4, 8, 1, 8, 1, 8, 2, 8, 2, 8, 2)
# One stage: with two, an accumulator that is carried through a loop and read by another product is wrong (triton#10993).
BLACKWELL = Settings(64, 64, True, True, 4, 8, 8, 1, 8, 1, 4, 1, 8, 1, 8, 1)
BY_ARCH = {80: AMPERE, 86: AMPERE, 89: AMPERE, 90: HOPPER, 100: BLACKWELL, 103: BLACKWELL, 120: AMPERE}

OLDEST = (3, 6)
# (architectures, first version, version without it, what goes wrong)
MISCOMPILED = [((103,), (3, 6), (3, 8), "products into an accumulator that a loop carries race (triton#10590)")]


@lru_cache
def settings(arch: int, itemsize: int) -> Settings:
    """For ``arch`` = 10 * major + minor; the settings of the newest one before it where it is not known."""
    known = BY_ARCH[max((a for a in BY_ARCH if a <= arch), default=80)]
    if itemsize < 4:
        return known
    # float32 operands take twice the memory, and in three-pass tf32 four times the registers.
    # No product is the tensor memory's at 16 rows, so nothing need be apart.
    known = replace(known, block=16, gradient_block=16, apart=False, inverse_warps=1, forward_warps=8, summary_warps=8)
    known = replace(known, forward_stages=1, backward_stages=1, summary_backward_stages=1)
    return replace(known, query_stages=1, key_stages=1)


def settings_for(x: Tensor) -> Settings:
    """Raises RuntimeError, one line, where this Triton's code for this device is known to be wrong."""
    if not x.is_cuda:
        return settings(90, x.itemsize)
    major, minor = torch.cuda.get_device_capability(x.device)
    refuse(10 * major + minor, triton.__version__)
    return settings(10 * major + minor, x.itemsize)


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
