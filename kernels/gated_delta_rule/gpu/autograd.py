"""The Triton path as two custom operators, opaque to torch.compile."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.gpu.call import Call, Inputs, Kept
from hybrid_ft.kernels.gated_delta_rule.gpu.launch import run_backward, run_forward
from hybrid_ft.kernels.operators import operator, register_autograd, register_fake

Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Eight = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def triton_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
    use_qk_l2norm: bool,
    keep_states: bool,
    correct: bool = True,
) -> tuple[Tensor, Tensor]:
    """The op on checked arguments: o and the final state."""
    needs_states = keep_states and torch.is_grad_enabled()
    o, final_state, *_ = forward_op(
        q, k, v, g, beta, cu_seqlens, initial_state, float(scale), use_qk_l2norm, needs_states, correct
    )
    return o, final_state


# An operator's schema is its signature: tensors, numbers and lists of tensors, but no named tuples.
@operator("gated_delta_rule")
def forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
    use_qk_l2norm: bool,
    keep_states: bool,
    correct: bool,
) -> Eight:
    inputs = Inputs(q, k, v, g, beta, cu_seqlens, initial_state, scale, use_qk_l2norm, correct)
    with _on(q):
        o, final_state, kept = run_forward(inputs, keep_states)
    return o, final_state, *kept


@register_fake(forward_op)
def _(q, k, v, g, beta, cu_seqlens, initial_state, scale, use_qk_l2norm, keep_states, correct):
    o, final_state, kept = Call(q, v, cu_seqlens).forward_memory(keep_states, correct)
    return o, final_state, *kept


@operator("gated_delta_rule_backward")
def backward_op(
    do: Tensor,
    d_final: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    kept: list[Tensor],
    scale: float,
    use_qk_l2norm: bool,
    correct: bool,
) -> Six:
    inputs = Inputs(q, k, v, None, None, cu_seqlens, initial_state, scale, use_qk_l2norm, correct)
    with _on(q):
        return tuple(run_backward(inputs, Kept(*kept), do, d_final))  # type: ignore[return-value]


@register_fake(backward_op)
def _(do, d_final, q, k, v, cu_seqlens, *_):
    return tuple(Call(q, do, cu_seqlens).backward_memory())


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Eight) -> None:
    q, k, v, g, beta, cu_seqlens, initial_state, scale, use_qk_l2norm, keep_states, correct = inputs
    o, _, *kept = output
    # Else a gradient of zeros would be made for every buffer that is only kept.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, None if keep_states else v, cu_seqlens, initial_state, *kept)
    ctx.scale, ctx.use_qk_l2norm, ctx.correct, ctx.o_shape = scale, use_qk_l2norm, correct, o.shape
    ctx.dtypes = g.dtype, beta.dtype


def _backward(ctx: Any, do: Tensor | None, d_final: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    q, k, v, cu_seqlens, initial_state, *kept = ctx.saved_tensors
    if do is None:
        do = q.new_zeros(ctx.o_shape)
    dq, dk, dv, dg, dbeta, d_initial = backward_op(
        do, d_final, q, k, v, cu_seqlens, initial_state, kept, ctx.scale, ctx.use_qk_l2norm, ctx.correct
    )
    d_state = None if initial_state is None else d_initial.to(initial_state.dtype)
    return dq, dk, dv, dg.to(ctx.dtypes[0]), dbeta.to(ctx.dtypes[1]), None, d_state, None, None, None, None


register_autograd(forward_op, _backward, _setup)


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever its arguments lie on."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
