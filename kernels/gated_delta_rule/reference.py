"""The gated delta rule, one token at a time: the definition.

This file is the definition; every other path must match it.

    normalise   q_t, k_t = q_t / sqrt(|q_t|^2 + 1e-6), k_t / sqrt(|k_t|^2 + 1e-6)      (when asked for)
    decay       S_t = exp(g_t) S_{t-1}
    correct     S_t = S_t + k_t (beta_t (v_t - S_t^T k_t))^T                            (or k_t (beta_t v_t)^T)
    read        o_t = scale * S_t^T q_t

Yang, Kautz, Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule" (arXiv 2412.06464), equation 10;
beta up to 2 lets an eigenvalue of the transition be negative (Grazzi et al., arXiv 2411.12537).
"""

from itertools import pairwise

import torch
from torch import Tensor

NORM_EPS = 1e-6


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 stays float64; everything narrower is computed in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def l2norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPS)


def gated_delta_rule_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    scale: float | None = None,
    use_qk_l2norm: bool = True,
    correct: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """``gated_delta_rule`` by its definition; the gradients are autograd's. Slow: for tests and self-checks."""
    dtype = compute_dtype(q)
    batch, length, _, key_dim = q.shape
    value_heads, value_dim = v.shape[2:]
    scale = key_dim**-0.5 if scale is None else scale
    group = value_heads // q.shape[2]
    queries, keys, values, decays, betas = (x.to(dtype).flatten(0, 1) for x in (q, k, v, g.exp(), beta))
    if use_qk_l2norm:
        queries, keys = l2norm(queries), l2norm(keys)
    queries, keys = (x.repeat_interleave(group, dim=1) for x in (queries, keys))
    edges = range(0, batch * length + 1, length) if cu_seqlens is None else cu_seqlens.tolist()

    outputs, final_states = [], []
    for segment, (start, end) in enumerate(pairwise(edges)):
        state = queries.new_zeros(value_heads, key_dim, value_dim)
        if initial_state is not None:
            state = initial_state[segment].to(dtype)
        for t in range(start, end):
            state = state * decays[t, :, None, None]
            error = values[t]
            if correct:
                error = error - torch.einsum("hkv,hk->hv", state, keys[t])
            state = state + torch.einsum("hk,hv->hkv", keys[t], betas[t, :, None] * error)
            outputs.append(scale * torch.einsum("hkv,hk->hv", state, queries[t]))
        final_states.append(state)
    o = torch.stack(outputs) if outputs else values
    final_state = torch.stack(final_states) if output_final_state else None
    return o.reshape(v.shape).to(v.dtype), final_state
