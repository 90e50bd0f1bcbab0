"""flash-attn's kernels, where the package for this GPU is installed.

Version 2 is what torch's varlen_attn runs anyway. torch can also put 3 and 4 under it (activate_flash_attention_impl),
but under every other attention of the process too, which then refuses dropout and other GPUs, and in some versions
without a backward; so the package's function is called, and by this model alone.

Both are young and depend on the head: each kind is tried out, forward and backward, before it is first used. What fails
there is not used, and a warning says so.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Varlen = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, float], Tensor]

PACKAGES = {9: "flash_attn_interface", 10: "flash_attn.cute"}
"""By the major number of the compute capability."""
LIMIT = 0.02
"""Of the relative error in L2 of a trial: bfloat16 alone makes 0.003, a wrong mask or gradient 0.1 or more."""


def installed_varlen(q: Tensor, k: Tensor) -> Varlen | None:
    """The package's causal attention for q [N, H, D] and k [M, HKV, D], or None.

    Called with q, k, v, the edges int32 [S+1] of queries and of keys, the longest of each, and the scale. A segment's
    queries are the last of its keys. No segment may be empty: version 3 hangs then (flash-attention issue 1254).
    """
    return _tried(q.device, q.dtype, q.shape[1] // k.shape[1], q.shape[2])


@cache
def _tried(device: torch.device, dtype: torch.dtype, group: int, D: int) -> Varlen | None:
    name = PACKAGES.get(torch.cuda.get_device_capability(device)[0])
    if name is None:
        return None
    try:
        varlen = _adapted(importlib.import_module(name).flash_attn_varlen_func)
        wrong = _fault(varlen, device, dtype, group, D)
    except Exception as error:  # noqa: BLE001
        if isinstance(error, ModuleNotFoundError) and error.name in (name, name.split(".")[0]):
            return None
        wrong = f"{type(error).__name__}: {error}".splitlines()[0]
    if wrong:
        warnings.warn(
            f"{name} is installed but not used for heads of {D} in {dtype}: {wrong}; torch's own attention runs",
            stacklevel=2,
        )
        return None
    return varlen


def _adapted(function: Any) -> Varlen:
    def varlen(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float
    ) -> Tensor:
        o: Any = function(
            q,
            k,
            v,
            cu_seqlens_q=cu_q,
            cu_seqlens_k=cu_k,
            max_seqlen_q=max_q,
            max_seqlen_k=max_k,
            softmax_scale=scale,
            causal=True,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        # some releases give the sums as well
        return o[0] if isinstance(o, tuple) else o

    return varlen


def _fault(varlen: Varlen, device: torch.device, dtype: torch.dtype, group: int, D: int) -> str:
    """What is wrong with results and gradients on three segments, the last with a history; nothing
    if they are right."""
    # whatever surrounds the first call: no gradients, or activations that are counted, to be computed again
    with torch.inference_mode(False), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):
        return _compare(varlen, device, dtype, group, D)


def _compare(varlen: Varlen, device: torch.device, dtype: torch.dtype, group: int, D: int) -> str:
    edges_q, edges_k, scale = [0, 70, 200, 240], [0, 70, 200, 310], D**-0.5
    generator = torch.Generator().manual_seed(0)
    sizes = {"q": (edges_q[-1], 2 * group), "k": (edges_k[-1], 2), "v": (edges_k[-1], 2), "o": (edges_q[-1], 2 * group)}
    given = {name: torch.randn(*size, D, generator=generator).to(device, dtype) for name, size in sizes.items()}
    cu_q, cu_k = (torch.tensor(edges, dtype=torch.int32, device=device) for edges in (edges_q, edges_k))

    def of_kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen(q, k, v, cu_q, cu_k, 130, 130, scale)

    def by_definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = []
        for (q_0, q_1), (k_0, k_1) in zip(pairwise(edges_q), pairwise(edges_k)):
            keys, values = (x[k_0:k_1].repeat_interleave(group, 1) for x in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q[q_0:q_1], keys) * scale
            hidden = torch.ones_like(scores, dtype=torch.bool).triu(1 + len(keys) - (q_1 - q_0))
            parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values))
        return torch.cat(parts)

    results = []
    for function, kind in ((of_kernel, dtype), (by_definition, torch.float64)):
        leaves = [given[name].detach().to(kind).requires_grad_() for name in "qkv"]
        o = function(*leaves)
        results.append([o.detach(), *torch.autograd.grad(o, leaves, given["o"].to(kind))])
    for name, got, true in zip(("the result", "dq", "dk", "dv"), *results):
        error = float((got.double() - true).norm() / true.norm())
        if not error <= LIMIT:
            return f"{name} is off by {error:.0e}"
    return ""


def _same(x: Tensor) -> Tensor:
    return x
