"""Whole runs on judged answers: how they begin, stop, go on and end, and what stands in their folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_helpers import RESUMED_IN_EACH_WAY, resumed_and_whole, timeless

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.training.kto.trainer import AnswerTrainer


@RESUMED_IN_EACH_WAY
def test_resumed_equals_uninterrupted(start_answers: Any, monkeypatch: pytest.MonkeyPatch, model: dict) -> None:
    """21 answers are steps of 8, 8 and 5, in another order the second time. Killed in step 4, stopped in step 5."""
    more = {"model": model, "rows": 21, "held_out": 6, "evaluate": {"every": 3}, "train": {"batch_tokens": 60}}
    _, whole = resumed_and_whole(monkeypatch, start_answers, AnswerTrainer, **more)
    rows = [line["rows"] for line in timeless(whole) if "loss" in line]
    assert sorted(rows[:3]) == sorted(rows[3:]) == [5, 8, 8] and rows[:3] != rows[3:]


def test_what_is_seen_and_kept(start_answers: Any) -> None:
    run = start_answers(held_out=6, evaluate={"every": 3, "answers": 2, "samples": ["ab?"]})
    assert run.status == 0
    first, *_ = timeless(run.folder)
    assert first["loss"] == pytest.approx(0.5, abs=1e-5) and first["accuracy"] == 0.5
    assert first["kl"] == pytest.approx(0, abs=1e-4) and first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert first["rows/chosen"] + first["rows/rejected"] == first["rows"] == 8
    assert first["logps/chosen"] < 0 > first["logps/rejected"]
    held = [line for line in timeless(run.folder) if "eval_loss" in line]
    assert [line["step"] for line in held] == [3, 6] and held[0]["eval_rows"] == 6
    assert {"eval_kl", "eval_accuracy", "eval_rewards/chosen"} <= held[0].keys()
    assert "step 1/6  loss 0.5000  good +0.000  bad +0.000  kl 0.000  accuracy 50%" in run.screen
    assert "held-out  before loss 0.5000" in run.screen
    record = json.loads((run.folder / "run.json").read_text())
    assert record["stage"] == "kto" and record["finished"]["step"] == 6
    assert list((run.folder / "reference").glob("answers-*.safetensors"))
    good = int(held[0]["eval_rows/chosen"])
    assert len((run.folder / "answers-after.jsonl").read_text().splitlines()) == min(good, 2) > 0


@pytest.mark.slow
def test_runs_share_a_reference_and_refuse_another_s(start_answers: Any, tmp_path: Path, monkeypatch: Any) -> None:
    cache = {"reference_cache": str(tmp_path / "shared")}
    start_answers("one", kto=cache, train={"steps": 1})
    asked: list[int] = []
    compute = AnswerTrainer.reference
    monkeypatch.setattr(AnswerTrainer, "reference", lambda self, rows: asked.append(len(rows)) or compute(self, rows))
    start_answers("two", kto=cache | {"beta": 0.2, "desirable_weight": 2.0}, train={"steps": 1})
    # the first of them once more, to see that it is this model's
    assert len(asked) == 1
    with pytest.raises(InputError, match="kto.reference_cache: .*shared is the reference of another run: the answers"):
        start_answers("other", kto=cache, seed=5)
    assert not (tmp_path / "other").exists()


def test_a_reference_of_another_model_is_refused(make_trainer: Any, make_answers: Any, tmp_path: Path) -> None:
    from hybrid_ft.finetune.training.kto.stage import Split, check_reference
    from hybrid_ft.finetune.training.reference_cache import ANSWERS, ReferenceCache

    for moved in (0.0, 0.03):
        trainer, cache = make_trainer(make_answers(12), moved=moved), ReferenceCache(tmp_path, {}, ANSWERS)
        rows = trainer.train_dataset
        split = Split(
            rows, rows.select_columns(["prompt_ids", "completion_ids", "origin"]), [bytes([n]) for n in range(12)]
        )
        values = {bytes([number]): (value,) for number, value in enumerate(rows["ref_logps"])}
        if not moved:
            check_reference(trainer, split, values, cache)
            continue
        with pytest.raises(InputError, match=r"the mean reward before the first step is [+-]\d.* and must be 0"):
            check_reference(trainer, split, values, cache)


@pytest.mark.parametrize("loss", ["apo_zero_unpaired", "kto"])
def test_one_row_is_enough_only_without_a_kl_term(start_answers: Any, tmp_path: Path, loss: str) -> None:
    kto, train = {"loss": loss}, {"steps": 1}
    if loss == "kto":
        with pytest.raises(InputError, match="data.sources: one row cannot be mismatched with another"):
            start_answers(rows=1, kto=kto, train=train)
        assert not (tmp_path / "run").exists()
    else:
        assert start_answers(rows=1, kto=kto, train=train).status == 0


def test_a_step_that_does_not_fit_is_found_at_once(start_answers: Any, monkeypatch: Any, tmp_path: Path) -> None:
    import torch

    def full(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(AnswerTrainer, "compute_loss", full)
    with pytest.raises(InputError, match=r"micro-batch of \d+ tokens does not fit in memory; the longest row") as error:
        start_answers()
    assert error.value.status == 3 and not (tmp_path / "run").exists()
