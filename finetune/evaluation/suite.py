"""A run's tasks: its model asked at some steps, answers kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation import table
from hybrid_ft.finetune.evaluation.batches import Budget
from hybrid_ft.finetune.evaluation.compared import as_json, compared
from hybrid_ft.finetune.evaluation.files import RESULTS, SUITE_FOLDER
from hybrid_ft.finetune.evaluation.items import Items, read_items
from hybrid_ft.finetune.evaluation.kept import Kept, file_name
from hybrid_ft.finetune.evaluation.named_tasks import MEASURES, NamedTask, named_tasks
from hybrid_ft.finetune.evaluation.scored import Scored
from hybrid_ft.finetune.evaluation.scoring import examples, keys_of, missing, of_items, score_missing
from hybrid_ft.finetune.evaluation.share import Share
from hybrid_ft.finetune.evaluation.stock_scores import measures_of_all, score_stock
from hybrid_ft.finetune.evaluation.stock_tasks import Stock, is_stock, load_stock
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
    """A recipe's tasks with their rows in a run's tokens. Of several processes each answers its share of the rows into
    a file of its own, so that any number of them goes on."""

    def __init__(
        self,
        tasks: list[NamedTask],
        items: list[Items],
        stock: list[Stock],
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
    ) -> None:
        self.tasks, self.items, self.stock, self.tokenizer, self.folder = tasks, items, stock, tokenizer, folder

    @classmethod
    def of(cls, wanted: schema.Suite, tokenizer: PreTrainedTokenizerBase, run: Path) -> Suite:
        """Raises InputError for tasks and rows that cannot be used. ``run``: the run's folder."""
        allow = "evaluate.suite.run_code: true"
        own, forgetting = ([name for name in part if not is_stock(name)] for part in (wanted.tasks, wanted.forgetting))
        tasks = named_tasks(own, forgetting, (), allow, wanted.run_code)
        stock = load_stock(wanted.tasks, wanted.forgetting, (), wanted.limit)
        lines = [*(name for name, _, _ in tasks), *measures_of_all(stock)]
        if wanted.best and wanted.best not in lines:
            raise InputError(
                f"evaluate.suite.best: got {wanted.best}, whose tasks are scored one by one; must be one of {', '.join(lines)}"
            )
        items = [read_items(task, tokenizer, wanted.limit) for _, task, _ in tasks]
        return cls(tasks, items, stock, tokenizer, run / SUITE_FOLDER)

    def digest(self) -> str:
        """Of all rows and of how they are asked and scored."""
        keys = [keys_of(task, items) for (_, task, _), items in zip(self.tasks, self.items, strict=True)]
        return digest_of([keys, *(one.digest for one in self.stock)])

    def forget_after(self, step: int) -> None:
        """Remove what steps have answered that a resumed run takes again."""
        for place in self.folder.glob("step-*"):
            if int(place.name.removeprefix("step-")) > step:
                shutil.rmtree(place)

    def done(self, step: int) -> bool:
        """Whether every answer of a step is there."""
        own = all(
            not missing(task, items, self._kept(step, name))
            for (name, task, _), items in zip(self.tasks, self.items, strict=True)
        )
        return own and all(_whole(one) in self._kept(step, one.name).lines for one in self.stock)

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
        for (name, task, forgetting), items in zip(self.tasks, self.items, strict=True):
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
            lines = of_items(task, items, self._kept(step, name))
            found.append(Scored(name, task, lines, forgetting=forgetting))
        for stock in self.stock:
            with _asked_to_stop():
                found += self._of_stock(stock, model, step, processes, stopped)
            if processes.any(stopped()):
                return None
        return found

    def _of_stock(
        self,
        stock: Stock,
        model: PreTrainedModel,
        step: int,
        processes: Processes,
        stopped: Callable[[], bool],
    ) -> list[Scored]:
        own = self._kept(step, stock.name, processes.rank)
        processes.wait()

        def meet(kept: Kept) -> None:
            if processes.any(stopped()):
                raise _Asked
            kept.lines |= self._kept(step, stock.name, processes.rank).lines
            # none may go on to write before all have read
            processes.wait()

        share = Share(processes.rank, processes.count, stopped, meet)
        found = score_stock(stock, lambda: model, model.config, self.tokenizer, own, Budget(), share)
        if processes.main and _whole(stock) not in own.lines:
            own.add([{"key": _whole(stock)}])
        return found

    def _kept(self, step: int, name: str, rank: int = 0) -> Kept:
        """The lines of all processes; what is added goes into this one's file."""
        place = self.folder / f"step-{step}" / file_name(name)
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
        return _mean(scored) if _measure(scored) in scored.falling else -_mean(scored)

    def conclude(self, console: Console, before: list[Scored], after: list[Scored], paths: list[str]) -> None:
        """Show the table of before and after, and keep it."""
        by_task = [list(pair) for pair in zip(before, after, strict=True)]
        measures = [measure for found in by_task for measure in compared(found, found[0].forgetting)]
        table.show(console, NAMES, measures, by_task)
        more: dict[str, Any] = {"paths": paths, "examples": examples(by_task)}
        more["warnings"] = table.all_warnings(NAMES, by_task)
        write_text(self.folder / RESULTS, as_json(NAMES, measures, **more))


@contextmanager
def _asked_to_stop() -> Iterator[None]:
    try:
        yield
    except _Asked:
        pass


def _whole(stock: Stock) -> str:
    """The key that says that all answers are there: which there are is lm_eval's to know."""
    return f"whole {stock.digest}"


def _measure(scored: Scored) -> str:
    if scored.task is None:
        return next(iter({**scored.lines[0]["scores"], **scored.totals}))
    return MEASURES[scored.task.evaluator][0]


def _mean(scored: Scored) -> float:
    """Over rows; of a loss over tokens, as the table has it."""
    name = _measure(scored)
    if name in scored.totals:
        return scored.totals[name]
    weights = [float(line["tokens"]) if scored.task and name == "loss" else 1.0 for line in scored.lines]
    values = [line["scores"].get(name, 0.0) for line in scored.lines]
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
