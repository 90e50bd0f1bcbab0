"""Samba: published shapes, the mistakes that no shape check sees, and pairs without forks."""

import pytest
import torch

import hybrid_ft
from hybrid_ft.hybrid_model.checkpoint.text_model import text_class
from hybrid_ft.hybrid_model.door.layout import build_layout
from hybrid_ft.hybrid_model.families.samba.presets import preset_config
from hybrid_ft.hybrid_model.layers import flat_attention, mamba1

TOKENS = torch.randint(3, 128, (60,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["samba", "jamba"])
def models(request, plain_and_flat):
    return plain_and_flat(request.param)


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS[None], use_cache=False).logits


# embeddings that are the head's as well, Mamba layers, attention layers and an MLP behind each
@pytest.mark.parametrize(("name", "size", "millions"), [("samba-421M", 1536, 421), ("samba-1.3B", 2304, 1300)])
def test_published_shapes(name: str, size: int, millions: int) -> None:
    config = preset_config(name)
    with torch.device("meta"):
        model = text_class(config)(config)
    total = sum(p.numel() for p in model.parameters())
    assert abs(total / 1e6 - millions) < 0.03 * millions
    inner, rank, layers = 2 * size, size // 16, config.num_hidden_layers
    mamba = size * 2 * inner + 5 * inner + inner * (rank + 32) + (rank + 1) * inner + 17 * inner + inner * size
    mlp = 3 * size * (size * 8 // 3)
    assert total == 32000 * size + layers // 2 * (mamba + 4 * size * size) + layers * (mlp + 2 * size) + size


SCAN, CONV, WINDOW = mamba1.selective_scan, mamba1.short_conv, flat_attention.window_attention
MISTAKES = {
    "no skip": (mamba1, "selective_scan", lambda x, dt, A, B, C, D, **o: SCAN(x, dt, A, B, C, 0 * D, **o)),
    "B and C exchanged": (mamba1, "selective_scan", lambda x, dt, A, B, C, D, **o: SCAN(x, dt, A, C, B, D, **o)),
    "a decay for all": (mamba1, "selective_scan", lambda x, dt, A, *r, **o: SCAN(x, dt, A.mean() + 0 * A, *r, **o)),
    "no bias": (mamba1, "short_conv", lambda x, weight, bias, **o: CONV(x, weight, **o)),
    "a window of one token more": (
        flat_attention,
        "window_attention",
        lambda q, k, v, layout, scale, window, dropout: WINDOW(q, k, v, layout, scale, window + 1, dropout),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_be_seen(models, relative, monkeypatch, mistake):
    plain, flat = models
    if "window" in mistake and flat.config.model_type == "jamba":
        pytest.skip("it has no windows")
    assert relative(logits(flat), logits(plain)) < 1e-5
    module, name, wrong = MISTAKES[mistake]
    monkeypatch.setattr(module, name, wrong)
    assert relative(logits(flat), logits(plain)) > 1e-4


def test_another_activation_and_forks_are_left_to_transformers_mixer(models, monkeypatch):
    _, flat = models
    monkeypatch.setattr(mamba1, "selective_scan", None)
    for module in flat.modules():
        if hasattr(module, "A_log"):
            monkeypatch.setattr(module, "activation", "gelu")
    assert logits(flat).isfinite().all()
    with pytest.raises(
        ValueError, match="Mixer cannot continue a segment: pass each row whole, without shared prompts"
    ):
        flat(input_ids=TOKENS[None], layout=build_layout([20, 20, 20], [-1, 0, 0]))


def test_a_shape_has_no_weights():
    with pytest.raises(hybrid_ft.errors.InputError, match="samba-421M is a shape without weights; set from_scratch"):
        hybrid_ft.load("samba-421M")
