"""``hybrid-ft run``: stages in a row, each starting from the last one's model.

A stage's folder is ``<output>/<number>-<kind>``. Every start looks at what is done: a finished stage is not
repeated, one that was cut short goes on, and one whose recipe or files have changed is done again with all after it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation import comparison
from hybrid_ft.finetune.recipe.schema import Recipe, changed
from hybrid_ft.finetune.recipe.stages import Questions, Stage, Stages, load_stages

if TYPE_CHECKING:
    from rich.console import Console

_RECORD = "pipeline.json"


Train = Callable[[str, Recipe], int]


def run(path: str | Path, overrides: Sequence[str], console: Console, train: Train | None = None) -> int:
    """Do what is not done yet. Returns the exit status: 0 all done, 75 stopped by a signal and resumable.

    ``train(kind, recipe)`` trains a stage and returns its status; None: in this process.
    """
    pipeline = load_stages(path, overrides)
    from hybrid_ft.finetune.runs.console import say

    place, stages = pipeline.place, pipeline.stages
    with _held(place):
        known, digest, base, done = _read(place), "", Path(), False
        models = _Models(pipeline, known, console)
        for number, stage in enumerate(stages, start=1):
            digest = _digest(stage, digest)
            title = f"stage {number} of {len(stages)}  {stage.kind:<6}  {stage.folder}"
            if known.get(stage.folder.name) != digest:
                if stage.folder.exists():
                    aside = stage.folder.with_name(f"replaced-{stage.folder.name}-{time.time_ns()}")
                    os.rename(stage.folder, aside)
                    title += f"  (has changed; what was there is now {aside.name})"
                known[stage.folder.name] = digest
                _write(place, known)
            result = _result(stage)
            if result:
                say(console, f"{title}  finished before")
            else:
                say(console, title)
                models.check(number)
                status = _do(stage, base, number, console, train)
                if status:
                    return status
                result = _result(stage)
                assert result is not None
                done = True
            base = result
            models.ask(stage, result, digest)
            if done and any(_is_asked(later) for later in stages[number:]):
                models.show(so_far=True)
        models.show()
        _write(place, known, finished=True)
        from hybrid_ft.finetune.reports.page import NAME, report_at_end

        if done or not (place / NAME).is_file():
            say(console, report_at_end(place))
    which = f"all {len(stages)} stages are" if len(stages) > 1 else "the stage is"
    say(console, f"{which} done: {base}")
    return 0


class _Models:
    """The base and the stages' models, each asked the file's questions once; nothing where it has none."""

    def __init__(self, pipeline: Stages, known: dict[str, str], console: Console) -> None:
        self._questions, self._place, self._known, self._console = pipeline.questions, pipeline.place, known, console
        self._first = pipeline.stages[0].recipe
        self._answers: list[tuple[str, list[dict[str, Any]]]] = []

    def check(self, number: int) -> None:
        """Before the first stage: rows that cannot be asked are named now, not after hours of training."""
        if number == 1 and self._questions and self._first:
            comparison.check(self._questions, self._first)

    def ask(self, stage: Stage, result: Path, digest: str) -> None:
        """A stage's model; with the first one also the base."""
        first = self._first
        if not self._questions or not first or not _is_asked(stage):
            return
        if stage.recipe is first:
            model = {key: value for key, value in _identity(first).items() if key.startswith("model.")}
            self._add("base", model, lambda questions: comparison.ask_base(questions, first))
        self._add(stage.folder.name, digest, lambda questions: comparison.ask(questions, result))

    def show(self, so_far: bool = False) -> None:
        """``so_far``: the table alone, so that a first result does not wait for the stages that follow."""
        if self._answers:
            show = comparison.show_table if so_far else comparison.show
            show(self._console, self._answers)

    def _add(self, name: str, of: Any, ask: Callable[[Questions], list[dict[str, Any]]]) -> None:
        from hybrid_ft.finetune.evaluation import kept_answers

        assert self._questions is not None
        file = self._place / f"answers-{name}.jsonl"
        from hybrid_ft.finetune.runs.identity import with_contents

        digest = _sha256([of, with_contents(self._questions.model_dump())])
        if self._known.get(file.name) != digest or not file.exists():
            with self._console.status(f"asking {name}"):
                kept_answers.write_lines(file, ask(self._questions))
            self._known[file.name] = digest
            _write(self._place, self._known)
        self._answers.append((name.partition("-")[2] or name, kept_answers.read_lines(file)))


def _is_asked(stage: Stage) -> bool:
    """Whether its model writes answers that no model before it has."""
    return stage.recipe is not None and stage.kind != "reward"


def _do(stage: Stage, base: Path, number: int, console: Console, elsewhere: Train | None) -> int:
    if stage.recipe is None:
        _export(stage, base)
        return 0
    # an adapter that goes on has its own base, which the recipe names
    starts_from_result = number > 1 and not stage.recipe.model.adapter
    recipe = changed(stage.recipe, "model", path=str(base)) if starts_from_result else stage.recipe
    if elsewhere is not None:
        return elsewhere(stage.kind, recipe)
    from hybrid_ft.finetune.training.stages import run as train

    try:
        return train(stage.kind, recipe, console)
    except InputError as error:
        lines = [f"stage {number}, {stage.kind}: {line}" for line in str(error).splitlines()]
        raise InputError("\n".join(lines), error.status) from error


def _export(stage: Stage, base: Path) -> None:
    """The model of the stage before, in the dtype asked for, opened again in plain transformers and compared."""
    from transformers.utils import logging

    from hybrid_ft.finetune.runs.export import Exporter
    from hybrid_ft.hybrid_model.checkpoint.generation_config import generation_defaults
    from hybrid_ft.hybrid_model.checkpoint.load import load
    from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer

    logging.disable_progress_bar()
    tokenizer, model = load_tokenizer(base), load(base, dtype=stage.dtype)
    stage.folder.mkdir(exist_ok=True)
    Exporter(stage.folder, tokenizer, generation_defaults(model, tokenizer), str(base)).whole(model)


def _result(stage: Stage) -> Path | None:
    """The folder of a finished stage's model."""
    if stage.recipe is None:
        model = stage.folder / "model"
        return model if model.is_dir() else None
    try:
        record = json.loads((stage.folder / "run.json").read_text(encoding="utf-8"))
        return stage.folder / record["finished"]["results"][-1]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _digest(stage: Stage, before: str) -> str:
    """Of all that decides what a stage makes: its recipe, the files it names, and the stages before it."""
    recipe = stage.recipe
    if recipe is not None and before:
        recipe = changed(recipe, "model", path="")  # what the stage before has made, and its digest stands for that
    return _sha256([before, stage.kind, stage.dtype if recipe is None else _identity(recipe)])


def _identity(recipe: Recipe) -> dict[str, Any]:
    from hybrid_ft.finetune.runs.identity import recipe_identity

    # a run may merge after its end, but the stages after this one start from what it leaves
    merge = {"model.lora.merge": recipe.model.lora.merge} if recipe.model.lora else {}
    return recipe_identity(recipe) | merge


def _sha256(value: Any) -> str:
    from hybrid_ft.finetune.runs.identity import digest_of

    return digest_of(value)


def _read(place: Path) -> dict[str, str]:
    record = place / _RECORD
    if not record.exists():
        return {}
    try:
        known = json.loads(record.read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"output: {record} is damaged; give another output") from error
    if not isinstance(known, dict):
        raise InputError(f"output: {record} is damaged; give another output")
    return known


def _write(place: Path, known: dict[str, str], finished: bool = False) -> None:
    from hybrid_ft.finetune.runs.atomic import write_text

    record, text = place / _RECORD, json.dumps({"stages": known, "finished": finished}, indent=1) + "\n"
    if not record.exists() or record.read_text(encoding="utf-8") != text:
        write_text(record, text)


@contextmanager
def _held(place: Path) -> Iterator[None]:
    """Hold the folder against other processes. What was made for stages that did not begin is taken away at the end."""
    from hybrid_ft.finetune.runs import lock

    with lock.held(place):
        foreign = [] if (place / _RECORD).exists() else sorted(p.name for p in place.iterdir() if p.name[0] != ".")
        if foreign:
            raise InputError(f"output: {place} holds {foreign[0]} and no {_RECORD}; give another output")
        try:
            yield
        finally:
            if not any(entry.is_dir() for entry in place.iterdir()):
                (place / _RECORD).unlink(missing_ok=True)
