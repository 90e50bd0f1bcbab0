"""On a CPU the fused head is this project's kernel, and gives what TRL's gives."""

from typing import Any

import pytest
import torch

FIELDS = ("loss", "log_probs", "entropy", "is_top1", "label_mask")


@pytest.fixture
def models(steady_base) -> dict[str, Any]:
    """The same weights under TRL's head and under this one."""
    from trl.trainer.utils import add_fused_lm_head

    import hybrid_ft
    from hybrid_ft.finetune.training.log_prob_head import use_own_head_on_cpu

    both = {name: hybrid_ft.load(steady_base) for name in ("trl", "ours")}
    for model in both.values():
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    use_own_head_on_cpu(both["ours"])
    return both


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(128, (3, 17))
    labels[torch.rand(3, 17) < 0.5] = -100
    labels[1] = -100
    return {"input_ids": torch.randint(128, (3, 17)), "attention_mask": torch.ones(3, 17), "labels": labels}


@pytest.mark.parametrize("count", [None, 7])
def test_outputs_and_gradients_are_those_of_trl(models, batch, count):
    outs = {name: model(**batch, fused_lm_head=True, num_items_in_batch=count) for name, model in models.items()}
    for field in FIELDS:
        theirs, ours = getattr(outs["trl"], field), getattr(outs["ours"], field)
        assert theirs.dtype == ours.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for out in outs.values():
        out.loss.backward()
    for (name, theirs), ours in zip(models["trl"].named_parameters(), models["ours"].parameters(), strict=True):
        assert float((theirs.grad - ours.grad).norm()) <= 1e-5 * float(theirs.grad.norm()) + 1e-9, name


def test_a_batch_without_labels_is_a_zero_with_gradients(models, batch):
    out = models["ours"](**batch | {"labels": torch.full((3, 17), -100)}, fused_lm_head=True)
    assert out.loss.item() == 0
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in models["ours"].parameters())


def test_logits_and_generation_are_as_before(models, batch, steady_base):
    import hybrid_ft

    plain = hybrid_ft.load(steady_base)
    with torch.no_grad():
        assert torch.equal(models["ours"](batch["input_ids"]).logits, plain(batch["input_ids"]).logits)
    tokens = [
        model.generate(batch["input_ids"], max_new_tokens=4, do_sample=False) for model in (models["ours"], plain)
    ]
    assert torch.equal(*tokens)


def test_only_labelled_positions_reach_the_kernel(models, batch, monkeypatch):
    from hybrid_ft.finetune.training import log_prob_head as cpu_head

    rows: list[int] = []
    kernel = cpu_head.token_log_probs
    monkeypatch.setattr(cpu_head, "token_log_probs", lambda h, w, t: rows.append(len(h)) or kernel(h, w, t))
    models["ours"](**batch, fused_lm_head=True)
    assert rows == [int((batch["labels"][:, 1:] != -100).sum())]
