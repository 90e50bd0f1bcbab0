"""One token of the delta rule per row, as in generation."""

import torch
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.checks import check_gpu_inputs, check_inputs, check_state
from hybrid_ft.kernels.gated_delta_rule.reference import compute_dtype, l2norm


@torch.no_grad()
def gated_delta_rule_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    scale: float | None = None,
    use_qk_l2norm: bool = True,
) -> tuple[Tensor, Tensor]:
    """
    q, k [B, H, K]; v [B, HV, V]; g, beta [B, HV]; state [B, HV, K, V], left as it is.
    Returns o [B, HV, V] in v's dtype and the new state in float32 (float64 for float64 inputs). No gradients.
    The tensors' device alone decides the path: on a GPU one Triton kernel, for 32 and 16 bits and head sizes that are
    multiples of 16 from 16 to 256.
    Raises ValueError, one line, for shapes or dtypes that do not fit.
    """
    q_row, k_row, v_row, g_row, beta_row = (x[:, None] if isinstance(x, Tensor) else x for x in (q, k, v, g, beta))
    check_inputs(q_row, k_row, v_row, g_row, beta_row, cu_seqlens=None)
    check_state("state", state, (q.shape[0], v.shape[1], q.shape[2], v.shape[2]))
    scale = q.shape[2] ** -0.5 if scale is None else scale
    if q.is_cuda:
        check_gpu_inputs(q_row, v_row)
        # Triton is there wherever torch supports CUDA, and nowhere else.
        from hybrid_ft.kernels.gated_delta_rule.gpu.step_launch import step_op

        return step_op(q, k, v, g, beta, state, float(scale), use_qk_l2norm)
    dtype = compute_dtype(q)
    qk = torch.stack((q, k), dim=2).to(dtype)
    if use_qk_l2norm:
        qk = l2norm(qk)
    if v.shape[1] > q.shape[1]:
        qk = qk.repeat_interleave(v.shape[1] // q.shape[1], dim=1)
    state, decay = state.to(dtype), g.to(dtype).exp()[..., None, None]
    # Both read the old state, which is then passed over once: o = scale * (decay S^T q + (q . k) delta).
    q_read, k_read = (qk @ state).mul_(decay).unbind(2)
    queries, keys = qk.unbind(2)
    delta = beta.to(dtype)[..., None] * (v.to(dtype) - k_read)
    state = (state * decay).addcmul_(keys[..., None], delta[..., None, :])
    o = q_read.addcmul(delta, (queries * keys).sum(-1, keepdim=True)).mul_(scale)
    return o.to(v.dtype), state
