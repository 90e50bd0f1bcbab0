"""Mixers with a cache, where transformers' own forward is not that of a row without padding, or without a cache."""

import pytest
import torch

ROW = torch.randint(3, 128, (24,), generator=torch.Generator().manual_seed(0))


def logits(model, ids, **given):
    with torch.no_grad():
        return model(input_ids=ids, **given).logits


@pytest.mark.parametrize("kind", ["nemotron_h", "zamba2"])
def test_a_step_has_the_scans_bound_of_the_time_step(plain_and_flat, relative, kind):
    """Time steps of 1e-4 where the bound is 1e-3; in single steps, and again in rows of two."""
    plain, flat = plain_and_flat(kind)
    for model in (plain, flat):
        for name, p in model.named_parameters():
            if name.endswith("dt_bias"):
                p.data.fill_(-9.0)
    want = logits(flat, ROW[None], use_cache=False)[0, -4:]

    def stepped(model):
        ids = ROW.expand(2, -1)
        cache = model(input_ids=ids[:, :-4], use_cache=True).past_key_values
        steps = [logits(model, ids[:, t : t + 1], past_key_values=cache)[:, 0] for t in range(20, 24)]
        return torch.stack(steps, dim=1)[1]

    assert relative(stepped(flat), want) < 1e-5
    assert relative(stepped(plain), want) > 1e-4


@pytest.mark.parametrize(
    ("kind", "bias"),
    [("nemotron_h", "use_bias"), ("granitemoehybrid", "mamba_proj_bias"), ("lfm2", "conv_bias")],
)
def test_a_bias_before_a_convolution_is_none_of_a_left_padded_rows(plain_and_flat, relative, kind, bias):
    plain, flat = plain_and_flat(kind, **{bias: True})
    ids, mask = torch.zeros(2, 2, 30, dtype=torch.long)
    ids[0, 6:], ids[1], mask[0, 6:], mask[1] = ROW, 5, 1, 1
    want = logits(plain, ROW[None], use_cache=False)[0]
    assert relative(logits(flat, ids, attention_mask=mask, use_cache=True)[0, 6:], want) < 1e-5
    assert relative(logits(plain, ids, attention_mask=mask, use_cache=True)[0, 6:], want) > 1e-4
