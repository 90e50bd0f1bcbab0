"""A recipe's tasks in a run: when they are asked, what a stop in between leaves, and who answers."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.runs.signals import Stopped
from hybrid_ft.finetune.training import seams, tasks


class FakeSuite:
    """Answers at once, unless a stop comes; remembers what it was asked."""

    def __init__(self, stopped: bool = False, done: bool = False) -> None:
        self.stopped, self.is_done = stopped, done
        self.asked: list[int] = []
        self.forgotten: list[int] = []
        self.processes: list[Processes | None] = []

    def done(self, step: int) -> bool:
        return self.is_done

    def measure(self, model: Any, step: int, processes: Processes | None, stopped: Any) -> list[str] | None:
        self.asked.append(step)
        self.processes.append(processes)
        return None if self.stopped else ["found"]

    def forget_after(self, step: int) -> None:
        self.forgotten.append(step)

    def badness(self, found: Any, best: str) -> float:
        return 0.5

    def scores(self, found: Any) -> dict[str, float]:
        return {"suite/a": 0.5}


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(seams, "plain_model", lambda model: model)
    trainer: Any = SimpleNamespace(
        processes=Processes(), stop=SimpleNamespace(agreed=False, now=False), control=TrainerControl(), model=None,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model), measuring=nullcontext,
        watchdog=SimpleNamespace(paused=nullcontext), best=[], logged=[], result_step=7,
    )  # fmt: skip
    trainer.note_best = trainer.best.append

    def log(scores: dict[str, float]) -> None:
        trainer.logged.append(scores)
        trainer.control.should_log = True

    trainer.log = log
    return trainer


def on_the_way(trainer: Any, suite: FakeSuite, every: int = 2, best: str | None = None) -> Any:
    return tasks.TasksOnTheWay(trainer, suite, SimpleNamespace(every=every, best=best))  # type: ignore[arg-type]


def step_end(asking: Any, step: int, last: int = 9) -> TrainerControl:
    control = asking.trainer.control
    asking.on_step_end(None, TrainerState(global_step=step, max_steps=last), control)
    return control


@pytest.mark.parametrize(("best", "asked"), [(None, [4, 8]), ("a", [4, 8, 9])])
def test_the_last_step_is_asked_where_it_may_be_the_best(trainer: Any, best: str | None, asked: list[int]) -> None:
    suite = FakeSuite()
    asking = on_the_way(trainer, suite, every=4, best=best)
    for step in range(1, 10):
        step_end(asking, step)
    assert suite.asked == asked and len(trainer.best) == (len(asked) if best else 0)


def test_a_stop_in_between_saves_and_ends_and_the_next_start_asks_before_its_first_step(trainer: Any) -> None:
    control = step_end(on_the_way(trainer, FakeSuite(stopped=True)), 2)
    assert control.should_save and control.should_training_stop and trainer.stop.agreed
    assert trainer.logged == []
    suite, trainer.stop.agreed = FakeSuite(), False
    asking = on_the_way(trainer, suite)
    for step, asked in ((0, []), (3, []), (2, [2])):
        asking.on_train_begin(None, TrainerState(global_step=step, max_steps=9), control)
        assert suite.asked == asked
    suite.stopped = True
    with pytest.raises(Stopped):
        asking.on_train_begin(None, TrainerState(global_step=2, max_steps=9), control)


def test_a_run_that_stops_anyway_asks_nothing_more(trainer: Any) -> None:
    suite, trainer.stop.agreed = FakeSuite(), True
    control = step_end(on_the_way(trainer, suite), 2)
    assert suite.asked == [] and not control.should_training_stop


@pytest.mark.parametrize(("log", "save"), [(False, False), (True, False), (False, True)])
def test_the_steps_own_line_is_neither_lost_nor_cut_short(trainer: Any, log: bool, save: bool) -> None:
    trainer.control.should_log, trainer.control.should_save = log, save
    assert step_end(on_the_way(trainer, FakeSuite()), 2).should_log is (log or save)
    assert trainer.logged == [{"suite/a": 0.5}]


def test_answers_that_are_there_already_are_not_logged_twice(trainer: Any) -> None:
    suite = FakeSuite(done=True)
    step_end(on_the_way(trainer, suite, best="a"), 2)
    assert suite.asked == [2] and trainer.logged == [] and trainer.best == [0.5]


@pytest.mark.parametrize(("resumed", "after"), [(None, 0), (Path("checkpoint-6"), 6)])
def test_a_start_forgets_the_answers_of_steps_that_are_taken_again(trainer: Any, resumed: Any, after: int) -> None:
    suite = FakeSuite()
    assert tasks.before(trainer, suite, resumed, False) == ["found"]  # type: ignore[arg-type,comparison-overlap]
    assert (suite.forgotten, suite.asked) == ([after], [0])


def test_of_processes_that_share_a_model_the_first_alone_has_the_base(trainer: Any) -> None:
    """The others, which hold nothing yet, must not wait for their share of the answers."""
    for rank, found in ((0, ["found"]), (1, None)):
        suite = FakeSuite()
        trainer.processes = SimpleNamespace(count=2, rank=rank, main=rank == 0, wait=lambda: None)
        assert tasks.before(trainer, suite, None, "hybrid") == found  # type: ignore[arg-type,comparison-overlap]
        assert suite.forgotten == ([] if rank else [0])
        assert [one.count for one in suite.processes if one] == ([] if rank else [1])


@pytest.mark.parametrize(("best", "kept"), [(None, {}), ("gsm8k", {"suite": "sum"})])
def test_the_tasks_rows_are_of_a_runs_identity_where_they_choose_its_result(best: Any, kept: dict[str, str]) -> None:
    suite = {"tasks": ["gsm8k"], "best": best} | ({"every": 2} if best else {})
    recipe = Recipe.model_validate(
        {"model": {"path": "tiny"}, "data": {"sources": [{"path": "rows.jsonl"}]}, "evaluate": {"suite": suite}}
    )
    rows: Any = SimpleNamespace(digest=lambda: "sum")
    assert tasks.identity(recipe, rows) == kept
    assert tasks.chosen_by(recipe) == ("best score in gsm8k" if best else None)
