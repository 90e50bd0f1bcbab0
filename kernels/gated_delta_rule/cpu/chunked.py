"""The delta rule in chunks of torch operations, with its own backward.

Within a chunk, with b_j = beta_j k_j, c = cumsum(g), D_ij = exp(c_i - c_j) for i >= j and 0 above the diagonal, rows as
tokens and S the K x V state at the chunk's start (q is normalised and carries the scale, k is normalised):

    T  = (I + strict_lower(K B^T . D))^-1
    Y  = T (V - exp(c) K S)                      what each token writes, before its beta
    O  = exp(c) Q S + (Q B^T . D) Y
    S' = exp(c_last) S + (exp(c_last - c) B)^T Y

Backward, from dO and dS' (the adjoint of a triangular solve is -dV Y^T, so no derivative of T appears):

    dY = (Q B^T . D)^T dO + exp(c_last - c) B dS'
    dV = T^T dY
    dS = exp(c_last) dS' + (exp(c) Q)^T dO - (exp(c) K)^T dV
    E  = dO Y^T . D            F = -strict_lower(dV Y^T . D)
    dQ = exp(c) dO S^T + E B
    dK = -exp(c) dV S^T + F B                    the part where k reads the state
    dB = exp(c_last - c) Y dS'^T + E^T Q + F^T K

beta and k share dB by the product rule: dbeta_j = k_j . dB_j, with no division, so it holds at beta = 0 too. dg gathers
the product of a weight and its gradient from every pair j < t <= i, for every token t; a token's own weight (the
diagonal of E) has no decay in it and is left out, because it would cancel in exact arithmetic only.

Without the correction T is the identity, Y is V, and all that k reads falls away: F, exp(c) K S and its gradient.

Backward keeps the inputs, the gates, D, T, Y and every S (computing S and Y again would cost an eighth of the time).
"""

from typing import Any

import torch
from torch import Tensor

from hybrid_ft.kernels.first_order import first_order
from hybrid_ft.kernels.gated_delta_rule.cpu.chunk_backward import Gradients, run_backward
from hybrid_ft.kernels.gated_delta_rule.cpu.chunk_forward import run_forward
from hybrid_ft.kernels.gated_delta_rule.cpu.plan import ChunkPlan, plan_chunks
from hybrid_ft.kernels.gated_delta_rule.cpu.tiles import Call, Inputs, Kept, Settings, TokenRows
from hybrid_ft.kernels.gated_delta_rule.reference import compute_dtype

CACHE = 5 * 2**20  # bytes of a tile's buffers, see ``tile_sizes``
GPU_SCRATCH = 2**28  # the same on a GPU, where a tile of a cache's size would leave most of the chip idle


@torch.compiler.disable  # the plan is of this batch's lengths, and inference mode's tensors fit no graph
def chunked_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
    use_qk_l2norm: bool,
    correct: bool = True,
) -> tuple[Tensor, Tensor]:
    """The op on checked arguments. Time and memory are linear in the number of tokens."""
    batch, length, heads, key_dim = q.shape
    value_heads, value_dim = v.shape[2:]
    dtype = compute_dtype(q)
    if initial_state is None:
        segments = batch if cu_seqlens is None else len(cu_seqlens) - 1
        initial_state = torch.zeros(segments, value_heads, key_dim, value_dim, dtype=dtype, device=q.device)
    initial_state = initial_state.to(dtype)
    if not batch * length:
        return v.clone(), initial_state.clone()
    chunk_size, rows, lanes = tile_sizes(key_dim, value_dim, dtype, CACHE if q.is_cpu else GPU_SCRATCH)
    per_key = value_heads // heads
    run = max((n for n in range(per_key, lanes + 1, per_key) if value_heads % n == 0), default=per_key)
    edges = range(0, batch * length + 1, length) if cu_seqlens is None else cu_seqlens.tolist()
    plan = plan_chunks(tuple(edges), chunk_size, max(1, lanes // run), q.device)
    settings = Settings(scale, use_qk_l2norm, run, rows, correct)
    return _ChunkedGatedDeltaRule.apply(q, k, v, g.to(dtype), beta.to(dtype), initial_state, plan, settings)


def tile_sizes(key_dim: int, value_dim: int, dtype: torch.dtype, scratch: int = CACHE) -> tuple[int, int, int]:
    """Chunk size, rows of a tile, lanes of a block, measured on a core with 2 MiB of second-level cache. ``scratch``:
    the bytes that a tile's buffers may take.

    Small chunks save products within the chunk, large ones passes over the state and memory for the states. On a
    Zen 3 core 16 takes up to 8 % less time than 32 below 64 x 64, where they tie, and 32 a tenth less than 64 up to
    128 x 128; these tie at 256 x 256. A tile's buffers may pass the cache by a factor of two, below which the cost
    of calling torch shows.
    """
    C = 16 if key_dim * value_dim < 4096 else 32 if key_dim * value_dim < 32768 else 64
    per_row = dtype.itemsize * (8 * C * key_dim + 5 * C * C + 4 * C * value_dim + 2 * key_dim * value_dim)
    rows = max(1, min(1024 * (scratch // CACHE) // C, scratch // per_row))
    return C, rows, rows


class _ChunkedGatedDeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        initial_state: Tensor,
        plan: ChunkPlan,
        settings: Settings,
    ) -> tuple[Tensor, Tensor]:
        # Without autograd's bookkeeping, views cost half and small operations a fifth less.
        with torch.inference_mode():
            call = Call(q, k, v, g, beta, plan, settings)
        kept = None
        if any(ctx.needs_input_grad):
            kept = call.keep(lambda name, *sizes: g.new_empty(sizes), call.rows)
        outputs = TokenRows.like(v, plan)
        # written in place, so in an order of its own: a view's or a gradient's strides may be any
        final_state = initial_state.clone(memory_format=torch.contiguous_format)
        with torch.inference_mode():
            run_forward(call, _inputs(q, k, v, call), final_state, kept, outputs)
        if kept:
            ctx.save_for_backward(q, k, v, g, *kept)
            ctx.call = call
        return outputs.rows[:-1].view(v.shape), final_state

    @staticmethod
    @first_order
    def backward(ctx: Any, do: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, *kept = ctx.saved_tensors
        call: Call = ctx.call
        grads = Gradients(call, q, k, v)
        d_initial = d_final.clone(memory_format=torch.contiguous_format)
        with torch.inference_mode():
            do_rows = TokenRows.of(do, call.plan)
            run_backward(call, _inputs(q, k, v, call), do_rows, Kept(*kept), d_initial, grads)
        dg, dbeta = call.gates.to_tokens(grads.decay_gradient(), grads.beta, like=g)
        dq, dk, dv = (grad.rows[:-1].view(x.shape) for grad, x in ((grads.q, q), (grads.k, k), (grads.v, v)))
        return dq, dk, dv, dg, dbeta, d_initial, None, None


def _inputs(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Inputs:
    q_rows, k_rows = (TokenRows.of(x, call.plan, call.group) for x in (q, k))
    return Inputs(q_rows, k_rows, TokenRows.of(v, call.plan))
