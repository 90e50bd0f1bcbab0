"""A step on judged answers against TRL's own trainer on transformers' own model: the same
losses, the same gradients."""

import inspect
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import gradients, move, our_step
from trl import KTOConfig, KTOTrainer

from hybrid_ft.finetune.training.kto.batches import bounds_of, mismatched

LOSSES = sorted(set(re.findall(r'loss_type == "(\w+)"', inspect.getsource(KTOTrainer._compute_loss))))


class StockTrainer(KTOTrainer):
    """TRL as it is, on answers that come in tokens."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


def lowered(trainer: Any, by: float) -> Any:
    """The trainer with a reference that is less sure of the mismatched answers, so that the KL term is above 0."""
    values = [value - by for value in trainer.train_dataset["ref_KL_logps"]]
    trainer.train_dataset = trainer.train_dataset.remove_columns("ref_KL_logps").add_column("ref_KL_logps", values)
    return trainer


def test_trl_s_losses_are_these() -> None:
    """A new one is a decision."""
    from hybrid_ft.finetune.recipe.preference_section import Kto

    assert LOSSES == sorted(Kto.model_fields["loss"].annotation.__args__)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.25)])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_trl_s(
    make_trainer: Any, make_answers: Any, steady_base: Path, tiny_tokenizer: Any, tmp_path: Path, loss: str, weights: Any
) -> None:  # fmt: skip
    """One batch of TRL's against a step of several micro-batches, the reference's numbers given to both."""
    from transformers import OlmoHybridForCausalLM

    of_loss = {"loss": loss, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    trainer = make_trainer(make_answers(13), batch_tokens=100, moved=0.02, **of_loss)
    if loss == "kto":
        trainer = lowered(trainer, 12.0)
    rows = list(trainer.train_dataset)
    policy = OlmoHybridForCausalLM.from_pretrained(steady_base, dtype=torch.float32)
    move(policy, 0.02)
    args = KTOConfig(
        str(tmp_path / "stock"), max_length=None, use_cpu=True, bf16=False, report_to="none", loss_type=loss, beta=0.3,
        desirable_weight=weights[0], undesirable_weight=weights[1], gradient_checkpointing=False,
        remove_unused_columns=False,
    )  # fmt: skip
    stock = StockTrainer(
        policy,
        OlmoHybridForCausalLM.from_pretrained(steady_base),
        args,
        train_dataset=trainer.train_dataset,
        processing_class=tiny_tokenizer,
    )
    stock.precompute_ref_logps = True
    theirs = [dict(row) for row in rows]
    if loss == "kto":
        for row, other in zip(theirs, mismatched(rows, 48), strict=True):
            row["KL_completion_ids"] = other["completion_ids"]
    else:
        for row in theirs:
            row.pop("ref_KL_logps", None)
    batch = stock.data_collator(theirs)
    batch["ref_KL_logps"] = torch.tensor([row.get("ref_KL_logps", 0.0) for row in rows])
    expected = stock.compute_loss(policy.train(), batch)
    expected.backward()
    assert len(trainer.data_collator(rows)["micro_batches"]) > 2
    value, gradient = our_step(trainer)
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (gradient - gradients(policy)).norm() < 1e-5 * gradients(policy).norm()
    if loss == "kto":
        assert trainer.kl == pytest.approx(stock._metrics["train"]["kl"][0], rel=1e-4) and trainer.kl > 1


@pytest.mark.slow
def test_micro_batches_do_not_change_the_step(make_trainer: Any, make_answers: Any) -> None:
    answers = make_answers(24)
    value, gradient = our_step(lowered(make_trainer(answers, moved=0.02), 12.0))
    for budget in (60, 150, 400):
        again, other = our_step(lowered(make_trainer(answers, batch_tokens=budget, moved=0.02), 12.0))
        assert again == pytest.approx(value, rel=1e-6)
        assert (other - gradient).norm() < 2e-6 * gradient.norm()


def test_every_prompt_runs_once_in_each_pass(make_trainer: Any, make_answers: Any) -> None:
    """Twelve answers to nine prompts: without gradients beside the mismatched ones, and with
    gradients beside their own."""
    answers = make_answers(12)
    trainer = make_trainer(answers)
    ran: list[tuple[int, bool]] = []
    trainer.model.model.layers[0].register_forward_hook(
        lambda module, inputs, output: ran.append((output.shape[:2].numel(), output.requires_grad))
    )
    our_step(trainer)
    rows = list(trainer.train_dataset)
    prompts = {tuple(row["prompt_ids"]) for row in rows}
    assert len(prompts) == 9
    counts = [sum(len(row["completion_ids"]) for row in of) for of in (mismatched(rows, 48), rows)]
    assert ran == [(sum(map(len, prompts)) + counts[0], False), (sum(map(len, prompts)) + counts[1], True)]


def test_lora_is_compared_with_the_base(make_trainer: Any, make_answers: Any) -> None:
    trainer = make_trainer(make_answers(8), batch_tokens=100, moved=0.05, lora=True)
    value, gradient = our_step(trainer)
    assert value != pytest.approx(0.5, abs=1e-3) and gradient.norm() > 0
    with trainer.model.disable_adapter():
        of_base = [float(trainer.reference([row])[0]) for row in trainer.train_dataset]
    assert of_base == pytest.approx(list(trainer.train_dataset["ref_logps"]), rel=1e-6)
    assert list(trainer.model.peft_config) == ["default"]


def test_held_out_answers_are_measured_exactly(make_trainer: Any, make_answers: Any) -> None:
    """Against a calculation by hand from each answer alone."""
    trainer = lowered(make_trainer(make_answers(11), batch_tokens=90, moved=0.02, rows_per_step=4), 10.0)
    rows = list(trainer.train_dataset)
    trainer.eval_dataset = trainer.train_dataset
    measured = trainer.held_out()
    gains, losses, right = [], [], []
    for first, last in pairwise(bounds_of(len(rows), 4)):
        for other in mismatched(rows[first:last], 48):
            gains.append(float(trainer.reference([other])[0]) - other["ref_KL_logps"])
    kl = max(0.0, sum(gains) / len(rows))
    for row in rows:
        gain = float(trainer.reference([row])[0]) - row["ref_logps"]
        lead = 0.3 * (gain - kl) * (1 if row["label"] else -1)
        losses.append(1 - 1 / (1 + torch.tensor(-lead).double().exp()))
        right.append(lead > 0)
    assert measured["kl"] == pytest.approx(kl, rel=1e-5) and kl > 0.1
    assert measured["loss"] == pytest.approx(float(sum(losses)) / 11, rel=1e-5)
    assert measured["accuracy"] == sum(right) / 11
