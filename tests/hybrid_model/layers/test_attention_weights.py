"""Attention weights on request are those of transformers' eager attention, at a prompt and in decoding."""

from typing import Any

import pytest
import torch
from transformers import OlmoHybridForCausalLM

TOKENS = torch.randint(1, 61, (2, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(TOKENS)
MASK[1, :4] = 0


@pytest.mark.parametrize("rope", [{"rope_theta": None}, {"rope_type": "default", "rope_theta": 1e4}])
@pytest.mark.parametrize("use_cache", [False, True])
@torch.no_grad()
def test_weights_of_a_prompt_and_of_a_step(make_pair: Any, relative: Any, rope: Any, use_cache: bool) -> None:
    plain, ours = make_pair(seed=1, rope_parameters=rope, num_key_value_heads=2)
    eager = OlmoHybridForCausalLM._from_config(plain.config, attn_implementation="eager").eval()
    eager.load_state_dict(plain.state_dict())
    batch = {"input_ids": TOKENS, "attention_mask": MASK, "output_attentions": True, "use_cache": use_cache}
    wanted, got = eager(**batch), ours(**batch)
    assert len(got.attentions) == 1
    real = MASK.bool()
    rows = [weights.transpose(1, 2)[real] for weights in (got.attentions[0], wanted.attentions[0])]
    assert relative(*rows) < 1e-5
    assert torch.equal(got.attentions[0].sum(-1).amax(1).round().bool(), real)
    assert relative(got.logits[real], ours(**batch | {"output_attentions": False}).logits[real]) < 1e-6
    if use_cache:
        more = {"input_ids": TOKENS[:, :1], "attention_mask": torch.cat([MASK, MASK[:, :1] | 1], 1)}
        steps = [
            model(**more, past_key_values=out.past_key_values, output_attentions=True).attentions[0]
            for model, out in ((ours, got), (eager, wanted))
        ]
        assert steps[0].shape == (2, 4, 1, 13) and relative(*steps) < 1e-5


def test_packed_rows_have_none(make_pair: Any) -> None:
    with pytest.raises(ValueError, match="output_attentions: attention weights are formed for rows of one document"):
        make_pair()[1](TOKENS, position_ids=torch.arange(6).repeat(2, 2), output_attentions=True)
