"""Adapters of tied embeddings that are trained whole, as PEFT saves them."""

import pytest
import torch
from adapter_kinds import TIED, make_adapter

import hybrid_ft
from hybrid_ft.hybrid_model.checkpoint.adapter_start import open_adapter
from hybrid_ft.hybrid_model.checkpoint.save import save


@pytest.mark.filterwarnings("ignore")  # PEFT's on tied layers
@pytest.mark.parametrize("kind", ["kept tied", "kept tied, both named", "grown and kept tied"])
def test_embeddings_that_stay_tied_open(make_pair, tmp_path, relative, kind):
    base = save(make_pair(seed=3, tie_word_embeddings=True)[1], tmp_path / "base")
    adapted = make_adapter(base, tmp_path / "adapter", **TIED[kind])
    opened = open_adapter(hybrid_ft.load(base), tmp_path / "adapter").eval()
    tokens = torch.arange(1, TIED[kind].get("resize", 61))[None]
    with torch.no_grad():
        assert relative(opened(tokens, use_cache=False).logits, adapted(tokens, use_cache=False).logits) < 2e-6
