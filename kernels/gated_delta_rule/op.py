"""The gated delta rule: arguments checked, then run on the tensors' device."""

import math

import torch
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.checks import check_gpu_head_sizes, check_inputs, check_state
from hybrid_ft.kernels.gated_delta_rule.cpu.chunked import chunked_gated_delta_rule


def gated_delta_rule(
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
    keep_states: bool = False,
    check_values: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """
    q, k [B, T, H, K]; v [B, T, HV, V], HV a multiple of H: each q/k head serves HV / H consecutive value heads.
    g [B, T, HV] is the logarithm of the decay, at most 0; beta [B, T, HV] is in [0, 2].
    cu_seqlens int32 or int64 [S+1], with B = 1: segment s is tokens cu_seqlens[s] : cu_seqlens[s+1]; it may be empty.
    initial_state, final_state [S or B, HV, K, V], float32 (float64 for float64 inputs); an empty segment's final state
    is its initial state. scale defaults to K**-0.5 and multiplies q after its norm.
    ``correct``: False leaves out what the state already says of a key, k_t (beta_t S^T k_t): the state is then that of
    Mamba-2, lightning attention or RetNet, and beta, at least 0, has no upper bound. No
    inverse is then computed. A state without bound is not kept in float16: on a GPU that is refused.

    Returns o [B, T, HV, V] in v's dtype, and the final state or None. Differentiable in q, k, v, g, beta and
    initial_state, through both outputs. bfloat16 and float16 inputs are computed in float32; on a GPU their matrix
    products take operands in that dtype and add up in float32.

    16 bits on a GPU run as Triton kernels, for head sizes that are multiples of 16 from 16 to 256, any strides, and
    without waiting for the device. There, backward computes the chunks' states again; ``keep_states`` keeps them from
    forward instead, (K / 64 + 1) * V numbers per token and head. All else, 32 and 64 bits on a GPU included, runs as
    torch operations, which read cu_seqlens back and always keep the states. ``check_values`` also checks that g and
    beta are in range and, on a GPU, cu_seqlens, and waits for it. Raises ValueError, one line, for shapes, dtypes or
    segment edges that do not fit; RuntimeError for a version of Triton that is known to be wrong on this GPU. See
    reference.py for the equations."""
    check_inputs(q, k, v, g, beta, cu_seqlens, check_values, 2.0 if correct else math.inf)
    segments = q.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    if initial_state is not None:
        check_state("initial_state", initial_state, (segments, v.shape[2], q.shape[3], v.shape[3]))
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if on_kernels(q):
        check_gpu_head_sizes(q.shape[3], v.shape[3])
        if not correct and q.dtype == torch.float16:
            raise ValueError("q: got torch.float16; on a GPU, without the correction, it must be bfloat16 or float32")
        # Triton is there wherever torch supports CUDA, and nowhere else.
        from hybrid_ft.kernels.gated_delta_rule.gpu.autograd import triton_gated_delta_rule

        o, final_state = triton_gated_delta_rule(
            q, k, v, g, beta, cu_seqlens, initial_state, scale, use_qk_l2norm, keep_states, correct
        )
        return o, final_state if output_final_state else None
    o, final_state = chunked_gated_delta_rule(
        q, k, v, g, beta, cu_seqlens, initial_state, scale, use_qk_l2norm, correct
    )
    return o, final_state if output_final_state else None


def on_kernels(q: Tensor) -> bool:
    """Three-pass tf32 costs a kernel the registers that it has for 16 bits, and is not better than torch's float32."""
    return q.is_cuda and q.itemsize == 2
