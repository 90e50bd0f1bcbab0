"""``hybrid-ft evaluate``: models in turn, tasks in turn, then one table."""

from __future__ import annotations

import gc
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hybrid_ft.errors import InputError, did_you_mean, masked
from hybrid_ft.finetune.evaluation import contamination, gate, table
from hybrid_ft.finetune.evaluation.batches import Budget
from hybrid_ft.finetune.evaluation.compared import as_json, compared
from hybrid_ft.finetune.evaluation.files import RESULTS
from hybrid_ft.finetune.evaluation.items import Items, read_items
from hybrid_ft.finetune.evaluation.kept import Kept, file_name
from hybrid_ft.finetune.evaluation.named_tasks import MEASURES, NamedTask, named_tasks
from hybrid_ft.finetune.evaluation.scored import Scored
from hybrid_ft.finetune.evaluation.scoring import examples, missing, of_items, score_missing
from hybrid_ft.finetune.evaluation.stock_scores import config_of, measures_of_all, score_stock
from hybrid_ft.finetune.evaluation.stock_tasks import Stock, is_stock, load_stock
from hybrid_ft.finetune.generation.generate import model_for_answers, tokenizer_for_answers
from hybrid_ft.finetune.generation.model_digest import model_digest
from hybrid_ft.finetune.runs import device
from hybrid_ft.finetune.runs.atomic import write_text
from hybrid_ft.finetune.runs.console import say
from hybrid_ft.finetune.runs.identity import library_versions

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Wanted:
    """What a command asks for. ``tasks`` and ``forgetting``: files or names; ``changes``:
    ``key=value`` for each task."""

    tasks: Sequence[str]
    forgetting: Sequence[str] = ()
    changes: Sequence[str] = ()
    limit: int | None = None
    samples: int | None = None
    run_code: bool = False
    trained_on: str | None = None
    fail_below: Path | None = None
    out: Path = Path("runs/evaluations")
    batch_tokens: int = Budget.tokens


@dataclass
class _Model:
    """A model to be evaluated: what it is called, where it lies, and its digest."""

    name: str
    path: str
    digest: str
    tokenizer: PreTrainedTokenizerBase
    items: list[Items]


def run(models: Sequence[str], wanted: Wanted, console: Console) -> int:
    """Evaluate and show. Returns 0, or ``gate.BELOW`` where a limit is missed. Raises InputError."""
    changes = [*wanted.changes, *([f"samples={wanted.samples}"] if wanted.samples else [])]
    own, forgetting = ([name for name in part if not is_stock(name)] for part in (wanted.tasks, wanted.forgetting))
    tasks = named_tasks(own, forgetting, changes, "--run-code", wanted.run_code)
    with console.status("reading lm_eval's tasks"):
        stock = load_stock(wanted.tasks, wanted.forgetting, changes, wanted.limit)
    _check_changes(changes, [*(name for name, _, _ in tasks), *(one.name for one in stock)])
    measured = {name: MEASURES[task.evaluator] for name, task, _ in tasks}
    measured |= measures_of_all(stock)
    limits = gate.read_limits(wanted.fail_below, list(measured)) if wanted.fail_below else {}
    gate.check_measures(limits, measured, wanted.fail_below)
    trained_on = contamination.recipe_of(wanted.trained_on) if wanted.trained_on else None
    if wanted.out.exists() and not wanted.out.is_dir():
        raise InputError(f"{wanted.out}: is a file; name a folder for the answers")
    opened = _opened(models, tasks, wanted, console)
    for (name, _, _), first in zip(tasks, opened[0].items, strict=True):
        if first.left_out.count:
            for reason, count in first.left_out.most_first():
                say(console, f"{name}: left out, {reason}: {count}")
    scored = [_of_model(model, tasks, stock, wanted, console) for model in opened]
    by_task = [list(models) for models in zip(*scored, strict=True)]
    met = _met(trained_on, by_task) if trained_on else [None] * len(by_task)
    measures = [
        measure
        for found, share in zip(by_task, met, strict=True)
        for measure in compared(found, found[0].forgetting, share)
    ]
    names = [model.name for model in opened]
    table.show(console, names, measures, by_task)
    wanted.out.mkdir(parents=True, exist_ok=True)
    more = {
        "paths": [model.path for model in opened],
        "examples": examples(by_task),
        "warnings": table.all_warnings(names, by_task),
        "command": _command(models, wanted),
        "versions": library_versions(),
    }
    write_text(wanted.out / RESULTS, as_json(names, measures, **more))
    say(console, f"answers   {wanted.out}")
    missed = gate.failures(limits, measures)
    for text in missed:
        say(console, f"below     {text}")
    return gate.BELOW if missed else 0


def _command(models: Sequence[str], wanted: Wanted) -> str:
    """What evaluates so again."""
    listed = (("--on", wanted.tasks), ("--forgetting", wanted.forgetting), ("--set", wanted.changes))
    alone = (("--limit", wanted.limit), ("--samples", wanted.samples), ("--trained-on", wanted.trained_on))
    words = [
        "hybrid-ft",
        "evaluate",
        *models,
        *(word for key, texts in listed for text in texts for word in (key, text)),
    ]
    words += [word for key, value in alone if value is not None for word in (key, str(value))]
    words += ["--run-code"] if wanted.run_code else []
    return masked(shlex.join(words))


def _check_changes(changes: Sequence[str], tasks: Sequence[str]) -> None:
    for change in changes:
        of, colon, _ = change.partition("=")[0].rpartition(":")
        if colon and of not in tasks:
            raise InputError(f"--set {change}: {of} is not evaluated ({', '.join(tasks)}){did_you_mean(of, tasks)}")


def _opened(paths: Sequence[str], tasks: list[NamedTask], wanted: Wanted, console: Console) -> list[_Model]:
    """Every model's tokenizer, and all rows in its tokens, before any weights are loaded."""
    opened = []
    for name, path in zip(_names(paths), paths, strict=True):
        with console.status(f"reading the rows for {name}"):
            tokenizer = tokenizer_for_answers(path)
            items = [read_items(task, tokenizer, wanted.limit) for _, task, _ in tasks]
            opened.append(_Model(name, path, model_digest(path), tokenizer, items))
    return opened


def _names(paths: Sequence[str]) -> list[str]:
    """The last parts of paths that tell them apart."""
    parts = [Path(path).parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"{next(path for path in paths if list(paths).count(path) > 1)}: is given twice")


def _of_model(
    model: _Model, tasks: list[NamedTask], stock: list[Stock], wanted: Wanted, console: Console
) -> list[Scored]:
    """All tasks by one model, which is loaded once, and only if an answer is missing."""
    loaded: list[Any] = []
    budget = Budget(tokens=wanted.batch_tokens)

    def load() -> Any:
        if not loaded:
            with console.status(f"loading {model.name}"):
                loaded.append(model_for_answers(model.path))
        return loaded[0]

    def kept_of(task: str) -> Kept:
        return Kept(wanted.out / "answers" / f"{file_name(f'{task}-{model.name}')}-{model.digest[:12]}.jsonl")

    found = []
    for (name, task, forgetting), items in zip(tasks, model.items, strict=True):
        kept = kept_of(name)
        tokens, seconds = 0, 0.0
        if left := len(missing(task, items, kept)):
            load()
            began = time.perf_counter()
            with console.status(f"{model.name}: {name}, {left:,} answers"):
                tokens = score_missing(task, items, kept, load(), model.tokenizer, budget)
            seconds = time.perf_counter() - began
        found.append(Scored(name, task, of_items(task, items, kept), tokens, seconds, forgetting))
    for one in stock:
        with console.status(f"{model.name}: {one.name}"):
            kept = kept_of(one.name)
            found += score_stock(one, load, config_of(model.path), model.tokenizer, kept, budget)
    if loaded:
        loaded.clear()
        gc.collect()
        if device.is_gpu():
            torch.cuda.empty_cache()
    return found


def _met(recipe: Any, by_task: list[list[Scored]]) -> list[float]:
    """Of each task the share of rows that were met in training."""
    questions = [[line["question"] for line in models[0].lines] for models in by_task]
    seen = iter(contamination.met([text for part in questions for text in part], contamination.training_texts(recipe)))
    return [sum(next(seen) for _ in part) / max(1, len(part)) for part in questions]
