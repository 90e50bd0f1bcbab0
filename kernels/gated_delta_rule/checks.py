"""Checks of the gated delta rule's arguments, each message with its name."""

from itertools import pairwise

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
GPU_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_floats(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        if x.dtype not in FLOATS:
            raise ValueError(f"{name}: got {x.dtype}; it must be float")


def check_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    cu_seqlens: Tensor | None,
    values: bool = False,
    most: float = 2.0,
) -> None:
    """q, k [B, T, H, K], v [B, T, HV, V], g and beta [B, T, HV].

    ``values``: also what g, beta, at most ``most``, and, on a GPU, cu_seqlens hold, which waits for the device.
    """
    for name, x, dims in (("q", q, 4), ("k", k, 4), ("v", v, 4), ("g", g, 3), ("beta", beta, 3)):
        if not isinstance(x, Tensor) or x.ndim != dims or x.dtype not in FLOATS:
            got = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name}: got {got}; it must be a float tensor with {dims} dimensions")
    shape = tuple(q.shape)
    if tuple(k.shape) != shape:
        raise ValueError(f"k: got shape {tuple(k.shape)}; it must be q's, {shape}")
    if tuple(v.shape[:2]) != shape[:2]:
        raise ValueError(f"v: got shape {tuple(v.shape)}; its first two sizes must be q's, {shape[:2]}")
    if not shape[2] or v.shape[2] % shape[2] or not v.shape[2]:
        raise ValueError(f"v: got {v.shape[2]} value heads; they must be a multiple of q's {shape[2]} heads")
    if not shape[3] or not v.shape[3]:
        raise ValueError(f"q, v: got head sizes {shape[3]} and {v.shape[3]}; both must be at least 1")
    for name, x in (("g", g), ("beta", beta)):
        if tuple(x.shape) != tuple(v.shape[:3]):
            raise ValueError(
                f"{name}: got shape {tuple(x.shape)}; it must be v's without its last, {tuple(v.shape[:3])}"
            )
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise ValueError(f"{name}: got {x.dtype}; q, k and v must have one dtype, and q is {q.dtype}")
    for name, x in (("k", k), ("v", v), ("g", g), ("beta", beta)):
        if x.device != q.device:
            raise ValueError(f"{name}: got device {x.device}; it must be q's, {q.device}")
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, shape[0], shape[1], values or readable(cu_seqlens))
    if values:
        _check_range("g", g, float("-inf"), 0.0)
        _check_range("beta", beta, 0.0, most)


def _check_range(name: str, x: Tensor, lowest: float, highest: float) -> None:
    if x.numel() and not bool(((x >= lowest) & (x <= highest)).all()):
        low, high = (float(value) for value in x.detach().float().aminmax())
        raise ValueError(f"{name}: got values from {low:g} to {high:g}; they must be from {lowest:g} to {highest:g}")


def check_gpu_inputs(q: Tensor, v: Tensor) -> None:
    """What a step's kernel can take; there is no other path on a GPU."""
    if q.dtype not in GPU_FLOATS:
        raise ValueError(f"q: got {q.dtype}; on a GPU it must be float32, bfloat16 or float16")
    check_gpu_head_sizes(q.shape[3], v.shape[3])


def check_gpu_head_sizes(K: int, V: int) -> None:
    for name, size in (("q, k", K), ("v", V)):
        if size % 16 or not 16 <= size <= 256:
            raise ValueError(f"{name}: got head size {size}; on a GPU it must be a multiple of 16, from 16 to 256")


def readable(x: Tensor) -> bool:
    """Whether its numbers are at hand, without waiting for a device. A trace without a GPU has tensors on the CPU that
    say they are on one."""
    return x.is_cpu and not x.is_cuda


def check_cu_seqlens(cu_seqlens: Tensor, batch: int, tokens: int, values: bool = True) -> None:
    """``values``: the edges themselves, which waits for the device that they are on."""
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or len(cu_seqlens) < 1:
        got = f"{tuple(cu_seqlens.shape)} {cu_seqlens.dtype}"
        raise ValueError(f"cu_seqlens: got {got}; it must be int32 or int64 with one dimension, [segments + 1]")
    if batch != 1:
        raise ValueError(f"cu_seqlens: got a batch of {batch}; packed segments need a batch of 1")
    if not values:
        return
    edges = cu_seqlens.tolist()
    if edges[0] != 0 or edges[-1] != tokens:
        raise ValueError(f"cu_seqlens: got {edges[0]} ... {edges[-1]}; it must start at 0 and end at {tokens} tokens")
    if any(a > b for a, b in pairwise(edges)):
        at = next(i for i, (a, b) in enumerate(pairwise(edges)) if a > b)
        raise ValueError(f"cu_seqlens: got {edges[at]} then {edges[at + 1]} at {at}; it must not decrease")


def check_state(name: str, state: Tensor, shape: tuple[int, int, int, int]) -> None:
    """A recurrent state [S, HV, K, V]."""
    if tuple(state.shape) != shape or state.dtype not in FLOATS:
        raise ValueError(f"{name}: got {tuple(state.shape)} {state.dtype}; it must be float with shape {shape}")
