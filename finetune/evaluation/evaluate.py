"""``hybrid-ft evaluate``: models in turn, tasks in turn, then one table."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation import contamination, gate, table
from hybrid_ft.finetune.evaluation.batches import Budget
from hybrid_ft.finetune.evaluation.compared import RESULTS, as_json, compared
from hybrid_ft.finetune.evaluation.items import Items, read_items
from hybrid_ft.finetune.evaluation.kept import Kept
from hybrid_ft.finetune.evaluation.named_tasks import MEASURES, NamedTask, named_tasks
from hybrid_ft.finetune.evaluation.scoring import Scored, examples, missing, of_items, score_missing
from hybrid_ft.finetune.generation.generate import model_for_answers, tokenizer_for_answers
from hybrid_ft.finetune.runs import device
from hybrid_ft.finetune.runs.atomic import write_text
from hybrid_ft.finetune.runs.console import say
from hybrid_ft.finetune.runs.identity import digest_of, with_contents
from hybrid_ft.hybrid_model.checkpoint.adapter_files import CONFIG, read_adapter
from hybrid_ft.hybrid_model.checkpoint.config import find_folder

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Wanted:
    """What a command asks for. ``tasks`` and ``forgetting``: files or names; ``changes``: ``key=value`` for each task."""

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
    tasks = named_tasks(wanted.tasks, wanted.forgetting, changes, "--run-code", wanted.run_code)
    limits = gate.read_limits(wanted.fail_below, [name for name, _, _ in tasks]) if wanted.fail_below else {}
    gate.check_measures(limits, {name: MEASURES[task.evaluator] for name, task, _ in tasks})
    trained_on = contamination.recipe_of(wanted.trained_on) if wanted.trained_on else None
    if wanted.out.exists() and not wanted.out.is_dir():
        raise InputError(f"{wanted.out}: is a file; name a folder for the answers")
    opened = _opened(models, tasks, wanted, console)
    for (name, _, _), first in zip(tasks, opened[0].items, strict=True):
        if first.left_out.count:
            for reason, count in first.left_out.most_first():
                say(console, f"{name}: left out, {reason}: {count}")
    met = _met(trained_on, tasks, opened[0]) if trained_on else {}
    scored = [_of_model(model, tasks, wanted, console) for model in opened]
    by_task = [[of_model[at] for of_model in scored] for at in range(len(tasks))]
    measures = [
        measure
        for (name, _, forgetting), found in zip(tasks, by_task, strict=True)
        for measure in compared(found, forgetting, met.get(name))
    ]
    names = [model.name for model in opened]
    table.show(console, names, measures, by_task)
    wanted.out.mkdir(parents=True, exist_ok=True)
    more = {"paths": [model.path for model in opened], "examples": examples(by_task)}
    write_text(wanted.out / RESULTS, as_json(names, measures, **more))
    say(console, f"answers   {wanted.out}")
    missed = gate.failures(limits, measures)
    for text in missed:
        say(console, f"below     {text}")
    return gate.BELOW if missed else 0


def _opened(paths: Sequence[str], tasks: list[NamedTask], wanted: Wanted, console: Console) -> list[_Model]:
    """Every model's tokenizer, and all rows in its tokens, before any weights are loaded."""
    opened = []
    for name, path in zip(_names(paths), paths, strict=True):
        with console.status(f"reading the rows for {name}"):
            tokenizer = tokenizer_for_answers(path)
            items = [read_items(task, tokenizer, wanted.limit) for _, task, _ in tasks]
            opened.append(_Model(name, path, _digest(path), tokenizer, items))
    return opened


def _names(paths: Sequence[str]) -> list[str]:
    """The last parts of paths that tell them apart."""
    parts = [Path(path).parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"{next(path for path in paths if list(paths).count(path) > 1)}: is given twice")


def _digest(path: str) -> str:
    """Of a model's or an adapter's files, the base's with it; of a hub name its commit."""
    folder = Path(path).expanduser()
    if not (folder / CONFIG).is_file():
        return digest_of(with_contents({"path": str(find_folder(path, weights=True))}))[7:]
    adapter = read_adapter(folder)
    base = str(find_folder(adapter.base, adapter.revision, weights=True))
    kinds = ("adapter_model*", "*.json", "*.jinja")
    own = sorted({str(file) for kind in kinds for file in folder.glob(kind) if file.is_file()})
    return digest_of([with_contents({"path": file}) for file in (base, *own)])[7:]


def _of_model(model: _Model, tasks: list[NamedTask], wanted: Wanted, console: Console) -> list[Scored]:
    """All tasks by one model, which is loaded once, and only if an answer is missing."""
    loaded: Any = None
    budget = Budget(tokens=wanted.batch_tokens)
    found = []
    for (name, task, _), items in zip(tasks, model.items, strict=True):
        file = re.sub(r"[^\w.-]+", "-", f"{name}-{model.name}")[:100]
        kept = Kept(wanted.out / "answers" / f"{file}-{model.digest[:12]}.jsonl")
        tokens, seconds = 0, 0.0
        if left := len(missing(task, items, kept)):
            if loaded is None:
                with console.status(f"loading {model.name}"):
                    loaded = model_for_answers(model.path)
            began = time.perf_counter()
            with console.status(f"{model.name}: {name}, {left:,} answers"):
                tokens = score_missing(task, items, kept, loaded, model.tokenizer, budget)
            seconds = time.perf_counter() - began
        found.append(Scored(name, task, of_items(task, items, kept), tokens, seconds))
    if loaded is not None:
        del loaded
        gc.collect()
        if device.is_gpu():
            torch.cuda.empty_cache()
    return found


def _met(recipe: Any, tasks: list[NamedTask], first: _Model) -> dict[str, float]:
    """Of each task the share of rows that were met in training."""
    questions = [[item.asked.question for item in items.items] for items in first.items]
    seen = iter(contamination.met([text for part in questions for text in part], contamination.training_texts(recipe)))
    return {
        name: sum(next(seen) for _ in part) / max(1, len(part))
        for (name, _, _), part in zip(tasks, questions, strict=True)
    }
