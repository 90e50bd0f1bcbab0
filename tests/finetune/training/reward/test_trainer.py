"""A step on pairs against TRL's RewardTrainer on transformers' own model: the same loss, the same gradients,
measures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import gradients, move, our_step
from trl import RewardConfig, RewardTrainer


class StockTrainer(RewardTrainer):
    """TRL as it is, on pairs that come in tokens."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


@pytest.mark.parametrize("centred", [None, 0.1])
def test_the_loss_is_trl_s(
    make_trainer: Any, make_pairs: Any, steady_base: Path, tiny_tokenizer: Any, tmp_path: Path, plain_scorer: Any,
    centred: float | None
) -> None:  # fmt: skip
    """One batch of TRL's on whole rows, every prompt twice, against a step of several micro-batches."""
    trainer = make_trainer(make_pairs(13), batch_tokens=100, moved=0.02, center_rewards_coefficient=centred)
    model = plain_scorer.from_pretrained(steady_base, dtype=torch.float32, num_labels=1)
    model.load_state_dict(trainer.model.state_dict())
    args = RewardConfig(
        str(tmp_path / "stock"), max_length=None, use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
        remove_unused_columns=False, center_rewards_coefficient=centred,
    )  # fmt: skip
    theirs = [
        {side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")} | {"margin": row["margin"]}
        for row in trainer.train_dataset
    ]
    assert {row["margin"] for row in theirs} == {0.0, 0.5}
    stock = StockTrainer(model, args, train_dataset=trainer.train_dataset, processing_class=tiny_tokenizer)
    expected = stock.compute_loss(model.train(), stock.data_collator(theirs))
    expected.backward()
    assert len(trainer.data_collator(list(trainer.train_dataset))["micro_batches"]) > 2
    value, gradient = our_step(trainer)
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (gradient - gradients(model)).norm() < 1e-5 * gradients(model).norm()
    measured, known = trainer.sums["train"].take(), stock._metrics["train"]
    assert measured["pairs"] == 13
    for name in ("accuracy", "margin", "mean_reward", "min_reward", "max_reward"):
        assert measured[name] == pytest.approx(known[name][0], rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_micro_batches_do_not_change_the_step(make_trainer: Any, make_pairs: Any) -> None:
    pairs = make_pairs(24)
    value, gradient = our_step(make_trainer(pairs, moved=0.02))
    for budget in (60, 150, 400):
        again, other = our_step(make_trainer(pairs, batch_tokens=budget, moved=0.02))
        assert again == pytest.approx(value, rel=1e-6)
        assert (other - gradient).norm() < 2e-6 * gradient.norm()


def test_a_prompt_runs_once_for_all_of_its_answers(make_trainer: Any, make_pairs: Any) -> None:
    """Eight pairs on six prompts: the layers see each prompt once and each of sixteen answers, and nothing else."""
    pairs = make_pairs(8)
    trainer, seen = make_trainer(pairs), []
    trainer.model.model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    our_step(trainer)
    prompts = {tuple(prompt) for prompt in pairs["prompt_ids"]}
    answers = [len(ids) for side in ("chosen_ids", "rejected_ids") for ids in pairs[side]]
    assert len(prompts) == 6 and [shape[:2].numel() for shape in seen] == [sum(map(len, prompts)) + sum(answers)]


def test_lora_trains_the_head_whole_and_nothing_of_the_base(make_trainer: Any, make_pairs: Any) -> None:
    trainer = make_trainer(make_pairs(8), lora=True, moved=0.02)
    our_step(trainer)
    moved = {name for name, p in trainer.model.named_parameters() if p.grad is not None and float(p.grad.norm()) > 0}
    assert any(name.endswith("score.modules_to_save.default.weight") for name in moved)
    assert all("lora_" in name or "score" in name for name in moved) and len(moved) > 10


def test_held_out_measures_are_those_of_the_rows_alone(make_trainer: Any, make_pairs: Any) -> None:
    """Whatever falls into one micro-batch: each pair by itself gives the same mean loss and accuracy."""
    trainer = make_trainer(make_pairs(9), batch_tokens=120, moved=0.02)
    whole = trainer.held_out()
    each = []
    for row in trainer.eval_dataset:
        with torch.no_grad():
            scores = [
                float(trainer.model(torch.tensor([row["prompt_ids"] + row[side]])).logits)
                for side in ("chosen_ids", "rejected_ids")
            ]
        each.append((scores[0] - scores[1], row["margin"]))
    lead = torch.tensor([one for one, _ in each])
    margins = torch.tensor([margin for _, margin in each])
    assert whole["loss"] == pytest.approx(float(-torch.nn.functional.logsigmoid(lead - margins).mean()), rel=1e-4)
    assert whole["accuracy"] == pytest.approx(float((lead > 0).float().mean()))
    assert whole["margin"] == pytest.approx(float(lead.mean()), rel=1e-3, abs=1e-5)


def test_move_changes_the_model(steady_base: Path) -> None:
    """The comparisons above are of a model that is not the base."""
    import hybrid_ft

    model = hybrid_ft.load(steady_base, dtype=torch.float32, scores=True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    move(model, 0.02)
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())
