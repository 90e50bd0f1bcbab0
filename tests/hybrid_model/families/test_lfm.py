"""LFM: layers are counted as the model builds them, and the convolution mixes what is gated."""

from typing import Any

import pytest
import torch

from hybrid_ft.hybrid_model.families.known import family_of


@pytest.mark.parametrize("kind", ["lfm2", "lfm3", "lfm2_moe"])
def test_each_layer_is_counted_as_what_the_model_builds_there(plain_model: Any, kind: str) -> None:
    """A convolution's channels are exchanged, 16 bits of each, and back; a query sees its layer's window alone."""
    model = plain_model(kind)
    config = model.config
    for layer, counted in zip(model.model.layers, family_of(config).mixings(config), strict=True):
        (one,) = counted
        attention = getattr(layer, "self_attn", None)
        assert (one.per_pair > 0) is (attention is not None) and one.per_token == 0
        assert one.window == (getattr(attention, "sliding_window", None) if attention else None)
        if attention is None:
            assert one.exchanged == 2 * layer.conv.conv.weight.shape[0]
    if kind == "lfm3":
        assert {one.window for (one,) in family_of(config).mixings(config)} == {None, 16}


@pytest.mark.parametrize("bias", [False, True])
def test_documents_are_apart_in_a_convolution_with_and_without_bias(
    plain_and_flat: Any, relative: Any, bias: bool
) -> None:
    plain, flat = plain_and_flat("lfm2", conv_bias=bias)
    ids = torch.randint(3, 128, (1, 30), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[*range(11), *range(2), *range(17)]])
    with torch.no_grad():
        packed = flat(ids, position_ids=positions, use_cache=False).logits
        for begin, end in ((0, 11), (11, 13), (13, 30)):
            alone = plain(ids[:, begin:end], use_cache=False).logits
            assert relative(packed[:, begin:end], alone) < 1e-5
