"""Whole runs on pairs: how they begin, stop, go on and end, and what stands in their folder."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import Killed, interrupt_at, lines, resumed_and_whole, timeless

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.training.dpo.trainer import PairTrainer

LORA = {"lora": {"targets": "all-linear", "rank": 4, "alpha": 8, "merge": True}}


@pytest.mark.parametrize("model", [{}, pytest.param(LORA, marks=pytest.mark.slow)], ids=["full", "lora"])
def test_resumed_equals_uninterrupted(start_pairs: Any, monkeypatch: pytest.MonkeyPatch, model: dict) -> None:
    """20 pairs are steps of 8, 8 and 4. Killed in step 4, stopped in step 5, three starts in all; attention's dropout,
    on in the base's config, is off."""
    more = {"model": model, "held_out": 4, "evaluate": {"every": 3}}
    _, whole = resumed_and_whole(monkeypatch, start_pairs, PairTrainer, **more)
    assert [line["step"] for line in timeless(whole) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    again = start_pairs("cut", **more)
    assert again.status == 0 and "this run is finished" in again.screen


def test_what_is_seen_and_kept(start_pairs: Any) -> None:
    run = start_pairs(held_out=6, evaluate={"every": 3, "answers": 2, "samples": ["ab?"]})
    assert run.status == 0
    first, *_ = lines(run.folder)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["rewards/accuracies"] == 0.5 and first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert first["logps/chosen"] < 0 > first["logps/rejected"]
    assert 1 < first["chosen_tokens"] < 12 and 1 < first["rejected_tokens"] < 12
    assert 0.1 < first["prompt_sharing_saved"] < 0.5 and first["tokens_per_s"] > 0
    held = [line for line in lines(run.folder) if "eval_loss" in line]
    assert [line["step"] for line in held] == [3, 6]
    assert {"eval_rewards/margins", "eval_rewards/accuracies", "eval_logps/chosen"} <= held[0].keys()
    assert "step 1/6  loss 0.6931  margin +0.000  accuracy 50%" in run.screen
    assert "held-out  before loss 0.6931" in run.screen
    record = json.loads((run.folder / "run.json").read_text())
    assert record["stage"] == "dpo" and record["finished"]["step"] == 6
    assert len((run.folder / "answers-after.jsonl").read_text().splitlines()) == 2


def test_held_out_pairs_are_measured_exactly(make_trainer: Any, make_pairs: Any) -> None:
    """Against a calculation by hand from each pair alone."""
    trainer = make_trainer(make_pairs(11), batch_tokens=90, moved=0.02, loss="sigmoid", beta=0.3)
    measured = trainer.held_out()
    losses, margins, totals = [], [], [0.0, 0]
    for pair in trainer.train_dataset:
        chosen, rejected = (float(side) for side in trainer.reference([pair]))
        margin = 0.3 * ((chosen - pair["ref_chosen_logps"]) - (rejected - pair["ref_rejected_logps"]))
        losses.append(math.log1p(math.exp(-margin)))
        margins.append(margin)
        totals = [totals[0] + chosen, totals[1] + len(pair["chosen_ids"])]
    assert measured["loss"] == pytest.approx(sum(losses) / 11, rel=1e-5)
    assert measured["rewards/margins"] == pytest.approx(sum(margins) / 11, rel=1e-4)
    assert measured["rewards/accuracies"] == sum(margin > 0 for margin in margins) / 11
    assert measured["logps/chosen"] == pytest.approx(totals[0] / 11, rel=1e-5)


def test_not_finite_stops_before_the_step(start_pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compute_loss = PairTrainer.compute_loss

    def spoilt(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        return loss * float("nan") if self.optimizer is not None and self.state.global_step == 3 else loss

    monkeypatch.setattr(PairTrainer, "compute_loss", spoilt)
    with pytest.raises(
        InputError, match=r"step 4: the loss is nan, so the step was not taken; its rows: pairs.jsonl:\d"
    ) as error:
        start_pairs()
    assert error.value.status == 4
    assert "checkpoint-2" in str(error.value)


def test_a_step_that_does_not_fit_is_found_at_once(
    start_pairs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The longest pair comes first, in the fullest micro-batch, and nothing is left behind."""
    longest: list[int] = []

    def full(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        longest.append(int(inputs["attention_mask"].sum(1).max()))
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(PairTrainer, "compute_loss", full)
    with pytest.raises(InputError, match=r"train.batch_tokens: a micro-batch of \d+ tokens does not fit") as error:
        start_pairs()
    assert error.value.status == 3
    assert longest and not (tmp_path / "run").exists()


def test_the_trial_changes_nothing(make_trainer: Any, make_pairs: Any) -> None:
    from hybrid_ft.finetune.training.trial import try_longest

    pairs = make_pairs(12)
    trainer = make_trainer(pairs, batch_tokens=90)
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    state = torch.get_rng_state()
    ran: list[int] = []
    hook = trainer.model.model.layers[0].register_forward_hook(lambda *of: ran.append(of[2].shape[:2].numel()))
    try_longest(trainer, pairs, "pair", {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0})
    hook.remove()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())
    assert all(p.grad is None for p in trainer.model.parameters())
    sizes = sorted(sum(len(pair[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")) for pair in pairs)
    assert 90 >= ran[0] > 90 - sizes[0] and ran[0] >= sizes[-1]


def test_a_model_that_is_not_its_reference_is_refused(make_trainer: Any, make_pairs: Any) -> None:
    from hybrid_ft.finetune.training.dpo.checks import check_first_loss

    check_first_loss(make_trainer(make_pairs(12)), Path("cache"))
    with pytest.raises(InputError, match=r"the loss before the first step is 0\.\d+ and must be 0\.6931: .* in cache"):
        check_first_loss(make_trainer(make_pairs(12), moved=0.02), Path("cache"))


@pytest.mark.parametrize(("loss", "expected"), [("hinge", 1.0), ("bco_pair", 2 * math.log(2)), ("ipo", 25.0)])
def test_other_losses_begin_elsewhere(make_trainer: Any, make_pairs: Any, loss: str, expected: float) -> None:
    from hybrid_ft.finetune.training.dpo.checks import check_first_loss

    with pytest.raises(InputError, match=f"must be {expected:.4f}"):
        check_first_loss(make_trainer(make_pairs(8), moved=0.02, loss=loss, beta=0.1), Path("cache"))


def test_a_loss_that_sorts_needs_its_step_whole(start_pairs: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dpo.loss: aot sorts the 8 pairs of a step .* must fit one micro-batch"):
        start_pairs(dpo={"loss": "aot", "beta": 0.1})
    assert not (tmp_path / "run").exists()
    assert start_pairs(dpo={"loss": "aot", "beta": 0.1}, train={"batch_tokens": 1000}).status == 0


def test_a_stopped_run_keeps_to_its_recipe_and_pairs(start_pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, pytest.raises(Killed):
        interrupt_at(patched, PairTrainer, 2, "kill")
        start_pairs()
    with pytest.raises(InputError, match="belongs to another run: dpo.beta was 5.0, is 4.0"):
        start_pairs(dpo={"beta": 4.0})
    with pytest.raises(InputError, match="belongs to another run: rows was sha256:"):
        start_pairs(seed=9, train={"save_every": 3})
