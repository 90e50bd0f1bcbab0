"""Stages in a row, each starting from the model that the one before has made: ``hybrid-ft run FILE``.

    stages:
      - sft: instruct-sft.yaml        # a recipe beside this file or by name, or the recipe itself
      - dpo: {data: {...}, dpo: {beta: 5}}
      - export: {dtype: bfloat16}     # the last model as one folder, checked
    evaluate: {...}                   # prompts for the base and every stage's model: see comparison.py
    output: runs/instruct             # null: runs/ and the file's stem

A stage's folder is ``<output>/<number>-<kind>``. Every start looks what is done: a finished stage is not repeated, one
that was cut short goes on, and one that has changed, in its recipe or in its files, is done anew with all after it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hybrid_ft.errors import ENVIRONMENT, InputError, holds_secret, shown
from hybrid_ft.finetune.evaluation import comparison
from hybrid_ft.finetune.recipe.checks import SECRET
from hybrid_ft.finetune.recipe.load import resolve_recipe
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.recipe.shipped import find_recipe
from hybrid_ft.finetune.recipe.yaml_file import YamlFile, read_yaml

if TYPE_CHECKING:
    from rich.console import Console

TRAINING = ("sft", "dpo")
DTYPES = ("float32", "bfloat16")
_RECORD = "pipeline.json"


@dataclass
class Stage:
    """``recipe`` of training; an export has a dtype instead, None: the model's own."""

    kind: str
    folder: Path
    recipe: Recipe | None = None
    dtype: str | None = None


@dataclass
class Pipeline:
    """``place``: the folder that the stages' folders lie in; ``questions``: what every model is asked, if anything."""

    place: Path
    stages: list[Stage]
    questions: Recipe | None


def load_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> Pipeline:
    """The stages of a file, every recipe validated. ``overrides`` begin with a stage's kind: ``dpo.train.steps=3``.

    In all but the first ``model.path`` is a stand-in until the stage before it has ended. Imports nothing heavy.
    Raises InputError with one line per mistake.
    """
    file = find_recipe(str(path))
    text = read_yaml(file)
    entries, output = text.value.get("stages"), text.value.get("output")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{file}: stages: must be a list such as [sft: sft.yaml, dpo: dpo.yaml]")
    mistakes = [f"{file}:{line}: {mistake}" for line, mistake in text.mistakes]
    for key in text.value.keys() - {"stages", "evaluate", "output"}:
        mistakes.append(
            f"{file}:{text.lines[key,]}: unknown key {key}; a file of stages has stages, evaluate and output"
        )
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "output":
            output = value
        elif not any(isinstance(entry, dict) and key.partition(".")[0] in entry for entry in entries):
            mistakes.append(f"override {key}: must begin with a stage of this file, such as sft.train.steps=3")
    if output is not None and (not isinstance(output, str) or not output):
        mistakes.append(f"{file}: output: got {shown(output)}; must be a folder")
        output = None
    elif holds_secret(output or file.stem):
        mistakes.append(f"{file}: output: {SECRET}")
        output = None
    place = Path(os.path.expanduser(output or f"runs/{file.stem}"))
    stages = []
    for number, entry in enumerate(entries):
        try:
            stages.append(_stage(entry, file, text, number, place, overrides))
        except InputError as error:
            mistakes += str(error).splitlines()
    questions = None
    try:
        questions = comparison.load_questions(text, file)
    except InputError as error:
        mistakes += str(error).splitlines()
    if mistakes:
        raise InputError("\n".join(mistakes))
    for stage in stages[:-1]:
        if stage.recipe and stage.recipe.model.lora:
            stage.recipe.model.lora.merge = True  # the next stage starts from whole weights
    return Pipeline(place, stages, questions)


def _stage(entry: Any, file: Path, text: YamlFile, number: int, place: Path, overrides: Sequence[str]) -> Stage:
    where = f"{file}:{text.lines['stages', number]}: stages.{number}"
    kind = next(iter(entry)) if isinstance(entry, dict) and len(entry) == 1 else None
    folder = place / f"{number + 1}-{kind}"
    if kind == "export" and number:
        wanted = {} if entry[kind] is None else entry[kind]
        if not isinstance(wanted, dict) or wanted.keys() - {"dtype"}:
            got = ", ".join(wanted) if isinstance(wanted, dict) else shown(wanted)
            raise InputError(f"{where}: export: got {got}; it has dtype alone")
        if wanted.get("dtype") not in (None, *DTYPES):
            raise InputError(f"{where}: export.dtype: got {shown(wanted['dtype'])}; must be {' or '.join(DTYPES)}")
        return Stage(kind, folder, dtype=wanted.get("dtype"))
    if kind not in TRAINING:
        first = "" if number else "; the first one trains"
        raise InputError(f"{where}: got {shown(entry)}; must be sft, dpo or export with its recipe{first}")
    mine = [override.removeprefix(f"{kind}.") for override in overrides if override.startswith(f"{kind}.")]
    recipe = _recipe(entry[kind], file, text, number, kind, mine)
    recipe.output = str(folder)
    return Stage(kind, folder, recipe)


def _recipe(
    entry: Any, file: Path, text: YamlFile, number: int, kind: Literal["sft", "dpo"], overrides: list[str]
) -> Recipe:
    """A stage's recipe from a path, or from the file itself with the file's line numbers."""
    loc = ("stages", number, kind)
    if isinstance(entry, str):
        beside = file.parent / entry
        inner_file = beside if beside.is_file() else find_recipe(entry)
        inner = read_yaml(inner_file)
    else:
        inner_file, depth = file, len(loc)
        lines = {
            inner[depth:]: line for inner, line in text.lines.items() if inner[:depth] == loc and len(inner) > depth
        }
        inner = YamlFile({} if entry is None else entry, lines, [])
    if not isinstance(inner.value, dict):
        raise InputError(f"{file}:{text.lines[loc]}: {kind}: got {shown(entry)}; must be a recipe or its file")
    if number == 0:
        return resolve_recipe(inner, inner_file, overrides, stage=kind)
    model = inner.value.get("model")
    if model is None or isinstance(model, dict):
        kept = {
            key: value for key, value in (model or {}).items() if key not in ("revision", "tokenizer", "from_scratch")
        }
        inner.value["model"] = kept | {"path": comparison.STAND_IN}
    return resolve_recipe(inner, inner_file, overrides, stage=kind)


def run(path: str | Path, overrides: Sequence[str], console: Console) -> int:
    """Do what is not done yet. Returns the exit status: 0 all done, 75 stopped by a signal and resumable."""
    pipeline = load_pipeline(path, overrides)
    from hybrid_ft.finetune.runs.processes import asked_for

    if asked_for() > 1:
        raise InputError(
            "hybrid-ft run is one process; give the launcher the stages one by one, hybrid-ft sft and then hybrid-ft dpo",
            ENVIRONMENT,
        )
    from hybrid_ft.finetune.runs.console import say

    place, stages = pipeline.place, pipeline.stages
    with _held(place):
        known, digest, base = _read(place), "", Path()
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
                status = _do(stage, base, number, console)
                if status:
                    return status
                result = _result(stage)
                assert result is not None
            base = result
            models.ask(stage, result, digest)
        models.show()
    say(console, f"all {len(stages)} stages are done: {base}")
    return 0


class _Models:
    """The base and the stages' models, each asked the file's questions once; nothing where it has none."""

    def __init__(self, pipeline: Pipeline, known: dict[str, str], console: Console) -> None:
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
        if not self._questions or not first or stage.recipe is None:
            return
        if stage.recipe is first:
            model = {key: value for key, value in _identity(first).items() if key.startswith("model.")}
            self._add("base", model, lambda questions: comparison.ask_base(questions, first))
        self._add(stage.folder.name, digest, lambda questions: comparison.ask(questions, result))

    def show(self) -> None:
        if self._answers:
            comparison.show(self._console, self._answers)

    def _add(self, name: str, of: Any, ask: Callable[[Recipe], list[dict[str, Any]]]) -> None:
        from hybrid_ft.finetune.evaluation import answers as evaluate

        assert self._questions is not None
        file = self._place / f"answers-{name}.jsonl"
        digest = _sha256([of, _identity(self._questions)])
        if self._known.get(file.name) != digest or not file.exists():
            with self._console.status(f"asking {name}"):
                evaluate.write_lines(file, ask(self._questions))
            self._known[file.name] = digest
            _write(self._place, self._known)
        self._answers.append((name.partition("-")[2] or name, evaluate.read_lines(file)))


def _do(stage: Stage, base: Path, number: int, console: Console) -> int:
    if stage.recipe is None:
        _export(stage, base)
        return 0
    if number > 1:
        stage.recipe.model.path = str(base)
    if stage.kind == "sft":
        from hybrid_ft.finetune.training.sft.stage import run as train
    else:
        from hybrid_ft.finetune.training.dpo.stage import run as train
    try:
        return train(stage.recipe, console)
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
    return _sha256([before, stage.kind, stage.dtype if stage.recipe is None else _identity(stage.recipe)])


def _identity(recipe: Recipe) -> dict[str, Any]:
    from hybrid_ft.finetune.runs.identity import recipe_identity

    return recipe_identity(recipe)


def _sha256(value: Any) -> str:
    from hybrid_ft.finetune.runs.identity import digest_of

    return digest_of(value)


def _read(place: Path) -> dict[str, str]:
    record = place / _RECORD
    if not record.exists():
        return {}
    try:
        known = json.loads(record.read_text(encoding="utf-8"))["stages"]
        if isinstance(known, dict):
            return known
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"output: {record} is damaged; give another output")


def _write(place: Path, known: dict[str, str]) -> None:
    from hybrid_ft.finetune.runs.atomic import write_text

    write_text(place / _RECORD, json.dumps({"stages": known}, indent=1) + "\n")


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
