"""In float64 every family's logits are transformers' own to its rounding, which is what a saved model
is judged by last."""

import pytest
import torch

from hybrid_ft.hybrid_model.checkpoint import agreement
from tests.hybrid_model.families.conftest import EVERY


@pytest.mark.parametrize("kind", EVERY)
def test_logits_beyond_the_bound_in_float32_are_compared_in_float64(kind, plain_and_flat, monkeypatch, tmp_path):
    plain, flat = plain_and_flat(kind)
    monkeypatch.setattr(agreement, "_TOLERANCE", 1e-12)
    assert agreement.difference_of_logits(flat, plain, torch.arange(3, 67)[None], tmp_path) < 1e-12
    with torch.no_grad():
        plain.get_output_embeddings().weight[5] *= 1 + 1e-3
    with pytest.raises(RuntimeError, match="logits differ by"):
        agreement.difference_of_logits(flat, plain.float(), torch.arange(3, 67)[None], tmp_path)
