"""In float64 every family's logits are transformers' own to its rounding, which is what a saved model
is judged by last."""

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from hybrid_ft.finetune.training.log_prob_head import use_own_head_on_cpu
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


@pytest.mark.parametrize("kind", EVERY)
def test_the_fused_head_of_trl_gives_the_loss_of_the_logits_or_says_that_it_cannot(kind, plain_and_flat):
    """In a script of one's own TRL puts it there; in the runs of this project another stands before it."""
    model = plain_and_flat(kind)[1]
    batch = {"input_ids": torch.arange(3, 67)[None], "labels": torch.arange(3, 67)[None]}
    with torch.no_grad():
        if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
            model.get_output_embeddings().weight *= 3  # so that the length of its rows counts
        want = model(**batch).loss
        add_fused_lm_head(model)
        torch.testing.assert_close(model(**batch).loss, want)
        if kind == "nemotron_flash":
            with pytest.raises(ValueError, match="which TRL's fused head does not know; train it by"):
                model(**batch, fused_lm_head=True)
            use_own_head_on_cpu(model)
        torch.testing.assert_close(model(**batch, fused_lm_head=True).loss, want, rtol=1e-5, atol=1e-5)
