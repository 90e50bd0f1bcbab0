"""Shared by Triton kernels that work on rows of a [rows, D] tensor."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.checks import GPU_FLOATS

# A row must fit into the registers of one program.
WIDEST = 16384
# Programs of a backward kernel that adds up over rows: each writes one partial sum, which one more sum adds in a fixed
# order. The same number on every GPU, so that the sums are the same; enough for the largest.
PROGRAMS = 512


def check_gpu(**tensors: Tensor) -> None:
    """Raises ValueError, one line, for a dtype that the kernels do not compute in; there is no other path on a GPU."""
    for name, x in tensors.items():
        if x.dtype not in GPU_FLOATS:
            raise ValueError(f"{name}: got {x.dtype}; on a GPU it must be float32, bfloat16 or float16")


def check_width(name: str, x: Tensor) -> None:
    """Raises ValueError, one line, for a last size that is too large for the kernels that normalise over it."""
    if x.shape[-1] > WIDEST:
        raise ValueError(f"{name}: got last size {x.shape[-1]}; on a GPU it must be at most {WIDEST}")


def on(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever its arguments lie on."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def as_rows(x: Tensor) -> Tensor:
    """[..., D] as [rows, D] whose rows are contiguous, by strides; copied only where strides cannot say it."""
    x = x.flatten(0, -2) if x.ndim > 1 else x.reshape(1, -1)
    return x if x.stride(1) == 1 else x.contiguous()


def tile(D: int, most: int = WIDEST) -> tuple[int, int, int]:
    """Rows, columns and warps of a tile: whole rows, unless they are wider than ``most``; 16 numbers to a thread."""
    columns = min(triton.next_power_of_2(max(D, 1)), most)
    rows = max(1, 4096 // columns)
    return rows, columns, max(1, min(16, rows * columns // 512))


@triton.jit
def exp(x):
    """Of a float32 in [-126 ln 2, 127 ln 2], below it 0 or next to it, to a rounding or two. tl.exp rounds x / ln 2
    first and is off by as many roundings as that is large; here its whole part n is taken out of x without one, as n
    and the longer part of ln 2 have few digits. What remains is at most ln 2 / 2, and its series ends below 6e-9."""
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    r = (x - n * 0.693359375) + n * 2.121944400546906e-4
    p = r * (1 / 5040) + 1 / 720
    p = r * p + 1 / 120
    p = r * p + 1 / 24
    p = r * p + 1 / 6
    p = r * p + 1 / 2
    return (1.0 + (r + r * r * p)) * tl.exp2(n)


@triton.jit
def sigmoid(x):
    """Of a float32, without an exponential that overflows."""
    z = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, z) / (1.0 + z)


@triton.jit
def load_tile(x, stride, first, o_n, o_d, mask):
    """float32 [rows, columns] of rows first + o_n, 0 where masked. All that may pass 2^31 is in ``first``, an int64."""
    return tl.load(x + first * stride + (o_n[:, None] * stride + o_d[None, :]), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_tile(x, stride, first, o_n, o_d, mask, value):
    at = x + first * stride + (o_n[:, None] * stride + o_d[None, :])
    tl.store(at, value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def normalise(x, m_n, eps, D: tl.constexpr):
    """x / sqrt(mean(x^2) + eps) and the factor; finite in rows that are not there, whatever eps."""
    mean = tl.where(m_n, tl.sum(x * x, 1) / D, 1.0)
    rstd = tl.rsqrt(mean + eps)[:, None]
    return x * rstd, rstd
