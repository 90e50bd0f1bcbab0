"""A run's tasks: its model asked at some steps, answers kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ft.finetune.evaluation import table
from hybrid_ft.finetune.evaluation.batches import Budget
from hybrid_ft.finetune.evaluation.compared import RESULTS, SUITE_FOLDER, as_json, compared
from hybrid_ft.finetune.evaluation.items import Items, read_items
from hybrid_ft.finetune.evaluation.kept import Kept
from hybrid_ft.finetune.evaluation.named_tasks import MEASURES, NamedTask, named_tasks
from hybrid_ft.finetune.evaluation.scored import Scored
from hybrid_ft.finetune.evaluation.scoring import examples, keys_of, missing, of_items, score_missing
from hybrid_ft.finetune.evaluation.task import LOWER_IS_BETTER
from hybrid_ft.finetune.runs.atomic import write_text
from hybrid_ft.finetune.runs.identity import digest_of
from hybrid_ft.finetune.runs.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe import schema

NAMES = ["before", "after"]


class _Asked(Exception):
    """The run is asked to stop."""


class Suite:
    """A recipe's tasks with their rows in a run's tokens. Of several processes each answers its share of the rows into a
    file of its own, so that any number of them goes on."""

    def __init__(
        self, tasks: list[NamedTask], items: list[Items], tokenizer: PreTrainedTokenizerBase, folder: Path
    ) -> None:
        self.tasks, self.items, self.tokenizer, self.folder = tasks, items, tokenizer, folder

    @classmethod
    def of(cls, wanted: schema.Suite, tokenizer: PreTrainedTokenizerBase, run: Path) -> Suite:
        """Raises InputError for tasks and rows that cannot be used. ``run``: the run's folder."""
        allow = "evaluate.suite.run_code: true"
        tasks = named_tasks(wanted.tasks, wanted.forgetting, (), allow, wanted.run_code)
        items = [read_items(task, tokenizer, wanted.limit) for _, task, _ in tasks]
        return cls(tasks, items, tokenizer, run / SUITE_FOLDER)

    def digest(self) -> str:
        """Of all rows and of how they are asked and scored."""
        return digest_of([keys_of(task, items) for (_, task, _), items in zip(self.tasks, self.items, strict=True)])

    def forget_after(self, step: int) -> None:
        """Remove what steps have answered that a resumed run takes again."""
        for place in self.folder.glob("step-*"):
            if int(place.name.removeprefix("step-")) > step:
                shutil.rmtree(place)

    def done(self, step: int) -> bool:
        """Whether every answer of a step is there."""
        return all(
            not missing(task, items, self._kept(step, name))
            for (name, task, _), items in zip(self.tasks, self.items, strict=True)
        )

    def measure(
        self,
        model: PreTrainedModel,
        step: int,
        processes: Processes | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> list[Scored] | None:
        """Every task's answers by the weights of a step, the same in each process; None where a stop came between."""
        processes = processes or Processes()
        found = []
        for (name, task, _), items in zip(self.tasks, self.items, strict=True):
            share = replace(items, items=items.items[processes.rank :: processes.count])

            def tell(done: int) -> None:
                if stopped():
                    raise _Asked

            with _asked_to_stop():
                own = self._kept(step, name, processes.rank)
                # none of the others may begin to write before all have read
                processes.wait()
                score_missing(task, share, own, model, self.tokenizer, Budget(), tell)
            if processes.any(stopped()):
                return None
            found.append(Scored(name, task, of_items(task, items, self._kept(step, name))))
        return found

    def _kept(self, step: int, name: str, rank: int = 0) -> Kept:
        """The lines of all processes; what is added goes into this one's file."""
        place = self.folder / f"step-{step}" / name
        kept = Kept(place / f"{rank}.jsonl")
        for file in place.glob("*.jsonl"):
            if file != kept.path:
                kept.lines |= Kept(file).lines
        return kept

    def scores(self, found: list[Scored]) -> dict[str, float]:
        """The mean of every task's first measure, by ``suite/task/measure``."""
        return {f"suite/{scored.name}/{_measure(scored)}": _mean(scored) for scored in found}

    def badness(self, found: list[Scored], task: str) -> float:
        """What is least where a task's score is best."""
        scored = next(one for one in found if one.name == task)
        falls = _measure(scored) in LOWER_IS_BETTER
        return _mean(scored) if falls else -_mean(scored)

    def conclude(self, console: Console, before: list[Scored], after: list[Scored], paths: list[str]) -> None:
        """Show the table of before and after, and keep it."""
        by_task = [list(pair) for pair in zip(before, after, strict=True)]
        measures = [
            measure
            for (_, _, forgetting), found in zip(self.tasks, by_task, strict=True)
            for measure in compared(found, forgetting)
        ]
        table.show(console, NAMES, measures, by_task)
        more: dict[str, Any] = {"paths": paths, "examples": examples(by_task)}
        write_text(self.folder / RESULTS, as_json(NAMES, measures, **more))


@contextmanager
def _asked_to_stop() -> Iterator[None]:
    try:
        yield
    except _Asked:
        pass


def _measure(scored: Scored) -> str:
    assert scored.task is not None
    return MEASURES[scored.task.evaluator][0]


def _mean(scored: Scored) -> float:
    """Over rows; of a loss over tokens, as the table has it."""
    name = _measure(scored)
    weights = [float(line["tokens"]) if name == "loss" else 1.0 for line in scored.lines]
    values = [line["scores"].get(name, 0.0) for line in scored.lines]
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
