"""The definition against transformers, and the one-token step against the definition."""

import torch
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import torch_recurrent_gated_delta_rule

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule_reference, gated_delta_rule_step


def inputs(H: int, HV: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    gen = torch.Generator().manual_seed(0)
    shapes = [(2, 9, H, 16), (2, 9, H, 16), (2, 9, HV, 24), (2, 9, HV), (2, 9, HV), (2, HV, 16, 24)]
    q, k, v, g, beta, state = (torch.randn(shape, generator=gen, dtype=dtype) for shape in shapes)
    return q, k, v, -g.abs(), 2 * beta.sigmoid(), state


def test_reference_is_transformers_recurrence() -> None:
    q, k, v, g, beta, state = inputs(2, 4, torch.float32)
    rule = getattr(torch_recurrent_gated_delta_rule, "__wrapped__", torch_recurrent_gated_delta_rule)
    repeated = (x.repeat_interleave(2, dim=2) for x in (q, k))
    theirs = rule(*repeated, v, g, beta, state, output_final_state=True, use_qk_l2norm_in_kernel=True)
    ours = gated_delta_rule_reference(q, k, v, g, beta, initial_state=state, output_final_state=True)
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_steps_are_the_reference() -> None:
    q, k, v, g, beta, state = inputs(2, 4, torch.float64)
    for option in ({}, {"scale": 0.7}, {"use_qk_l2norm": False}):
        o, final_state = gated_delta_rule_reference(
            q, k, v, g, beta, initial_state=state, output_final_state=True, **option
        )
        now = state.clone()
        for t in range(q.shape[1]):
            before = now.clone()
            o_t, after = gated_delta_rule_step(*(x[:, t] for x in (q, k, v, g, beta)), now, **option)
            assert torch.equal(now, before)
            torch.testing.assert_close(o_t, o[:, t], rtol=1e-12, atol=1e-12)
            now = after
        torch.testing.assert_close(now, final_state, rtol=1e-12, atol=1e-12)


def test_step_keeps_a_bfloat16_rows_state_in_float32() -> None:
    q, k, v, g, beta, state = inputs(1, 2, torch.float32)
    row = [x[:, 0].bfloat16() for x in (q, k, v)]
    o, after = gated_delta_rule_step(*row, g[:, 0], beta[:, 0], state)
    wide, wide_after = gated_delta_rule_step(*(x.float() for x in row), g[:, 0], beta[:, 0], state)
    assert o.dtype == torch.bfloat16 and torch.equal(o, wide.bfloat16())
    assert after.dtype == torch.float32 and torch.equal(after, wide_after)
