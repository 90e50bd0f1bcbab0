"""Steps of rows in micro-batches: what each counts, and which rows a process measures."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.runs.team import Team
from hybrid_ft.finetune.training.step_trainer import StepTrainer

LENGTHS = [3, 9, 4, 1, 7, 2, 5]


class Sums:
    """Rows that were taken in, as ``AnswerSums`` and its like count them."""

    def __init__(self) -> None:
        self.rows = 0

    def take(self, processes: Any = None) -> dict[str, float]:
        rows, self.rows = self.rows, 0
        return {"rows": rows} if rows else {}


class Trainer(StepTrainer):
    """Without a model: a row's loss is its number of tokens."""

    parts = ("ids",)

    def __init__(self, processes: Any = None, team: Team | None = None, stopped: bool = False) -> None:
        self.eval_dataset = Dataset.from_list([{"ids": [row] * size} for row, size in enumerate(LENGTHS)])
        self.batch_tokens, self.team, self.processes = 12, team or Team(), processes or Processes()
        self.stop = SimpleNamespace(now=stopped, agreed=False)
        self.watchdog, self.model, self.seen = SimpleNamespace(beat=lambda: None), None, list[list[int]]()
        self.sums, self.work, self.counted = {"train": Sums(), "eval": Sums()}, [5, 9], True

    @contextmanager
    def measuring(self) -> Any:
        yield

    def padded(self, rows: Any) -> dict[str, Any]:
        return {"rows": rows}

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        sizes = [len(row["ids"]) for row in inputs["rows"]]
        if self.counted:
            self.seen.append([row["ids"][0] for row in inputs["rows"]])
            self.sums["eval"].rows += len(sizes)
        return torch.tensor(sum(sizes) / len(sizes))


@pytest.fixture(autouse=True)
def batches_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid_ft.finetune.training.step_trainer.own_answers", lambda batch, team: batch)


def test_every_held_out_row_is_measured_once_within_the_budget() -> None:
    trainer = Trainer()
    assert trainer.held_out() == {"loss": pytest.approx(sum(LENGTHS) / len(LENGTHS)), "rows": len(LENGTHS)}
    assert sorted(row for batch in trainer.seen for row in batch) == list(range(len(LENGTHS)))
    assert all(sum(LENGTHS[row] for row in batch) <= 12 for batch in trainer.seen)
    assert trainer.counted


@pytest.mark.parametrize("count", [2, 3, 8])
def test_processes_share_the_rows_and_wait_for_each_other(count: int) -> None:
    """Each has as many micro-batches as the others; one that is left without rows counts none."""
    trainers = [Trainer(team=Team(count=count, number=number)) for number in range(count)]
    found = [list(one.held_out_batches(one.eval_dataset, one.processes, one.team)) for one in trainers]
    assert len({len(batches) for batches in found}) == 1
    assert sum(rows for batches in found for _, rows in batches) == len(LENGTHS)


def test_a_stop_ends_a_measure() -> None:
    trainer = Trainer(stopped=True)
    assert list(trainer.held_out_batches(trainer.eval_dataset, trainer.processes, trainer.team)) == []
    assert trainer.stop.agreed


def test_what_was_measured_before_the_training_is_forgotten() -> None:
    trainer = Trainer()
    trainer.sums["eval"].rows = 3
    trainer.forget_measures()
    assert trainer.work == [0, 0] and trainer.sums["eval"].take() == {}


def test_a_team_counts_a_steps_operations_once() -> None:
    trainer = Trainer()
    trainer.team = Team(size=4)
    assert trainer.floating_point_ops({"work": [80, 100]}) == 20
