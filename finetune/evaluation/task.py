"""An evaluation task: a YAML file of rows, how they are asked and scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from hybrid_ft.errors import InputError, did_you_mean
from hybrid_ft.finetune.data.messages.column_templates import ColumnTemplate, is_template
from hybrid_ft.finetune.evaluation.stock_tasks import is_stock
from hybrid_ft.finetune.recipe.checks import secrets
from hybrid_ft.finetune.recipe.data_section import Source
from hybrid_ft.finetune.recipe.files import Files
from hybrid_ft.finetune.recipe.load import validated
from hybrid_ft.finetune.recipe.mistakes import Mistakes, Wrong
from hybrid_ft.finetune.recipe.nearest import nearest_file
from hybrid_ft.finetune.recipe.overrides import apply_overrides
from hybrid_ft.finetune.recipe.section import AtLeastOne, Section, Seed, Text
from hybrid_ft.finetune.recipe.shipped import EVALUATIONS, evaluation_names
from hybrid_ft.finetune.recipe.yaml_file import read_yaml

Evaluator = Literal["exact", "contains", "number", "choice", "json", "calls", "code", "loss", "instructions", "refusal"]
_PATH_IS_SOURCE = BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value)
_BY_LIKELIHOOD = ("choice", "loss")


class Made(Section):
    """Rows that are made here, of a length in tokens, in the manner of RULER (2404.06654)."""

    kind: Literal["needle", "needles", "many-values", "variables", "common-words", "frequent-words"] = Field(
        examples=["needle"]
    )
    """What is asked: one sentence among filler, one of several alike, all values of one key, chains of assignments, or
    words by how often they stand there."""
    tokens: int = Field(ge=64, le=2**22, examples=[65536])
    """Length of a prompt, in tokens of the first model."""
    count: AtLeastOne = Field(100, examples=[500])
    """How many rows."""
    seed: Seed = Field(0, examples=[1])
    """Seed of the rows."""


class Task(Section):
    """What is asked and how it is scored."""

    about: str = Field("", examples=["GSM8K, 1,319 test problems. MIT."])
    """What the rows are, where they come from, their licence."""
    rows: Annotated[Source | None, _PATH_IS_SOURCE] = Field(None, examples=[{"path": "test.jsonl", "columns": "gsm8k"}])
    """The rows, keys as in data.sources. The last answer of a row is the reference."""
    made: Made | None = Field(None, examples=[{"kind": "needle", "tokens": 4096}])
    """Rows made here, in place of rows."""
    evaluator: Evaluator = Field(examples=["number"])
    """How answers are scored. exact: the reference's text. contains: every line of the reference. number: the number it
    comes to. choice: the likeliest of options. json: fields of an object. calls: functions and arguments. code:
    program's tests. instructions: IFEval's. refusal: declines or not. loss: of the answers' tokens."""
    prompt: Text | None = Field(None, examples=["{{ prompt }}\n\nEnd with the number."])
    """The question, a Jinja2 template over the row's columns and prompt, the question as the columns give it."""
    system: Text | None = Field(None, examples=["Answer briefly."])
    """A system message before it."""
    form: Literal["chat", "plain"] = Field("chat", examples=["plain"])
    """chat: by the model's chat template. plain: as text, for a base model; prompt should end on
    where the answer begins."""
    options: list[Text] | Text | None = Field(None, examples=[["A", "B", "C", "D"]])
    """Of choice: texts or templates; or the column that holds a list of them."""
    per_character: bool = Field(False, examples=[True])
    """Of choice: compare log-probabilities per character, for options of unequal length."""
    program: Text | None = Field(None, examples=["{{ answer }}\n{{ test_list | join('\\n') }}"])
    """Of code: what is run, a template over the row's columns and answer, the code of the answer."""
    shots: int = Field(0, ge=0, le=100, examples=[5])
    """Examples with their answers before each question."""
    shots_from: Annotated[Source | None, _PATH_IS_SOURCE] = Field(None, examples=[{"path": "dev.jsonl"}])
    """Where they come from; null: the first of rows, which are then not asked."""
    samples: AtLeastOne = Field(1, le=1000, examples=[8])
    """Answers to each question; its score is their mean."""
    temperature: float = Field(0.0, ge=0, le=10, examples=[0.6])
    """0 always takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1, examples=[0.95])
    """Sample from the likeliest tokens that hold this much probability."""
    seed: Seed = Field(0, examples=[1])
    """Seed of the sampling, and of what --limit takes."""
    max_new_tokens: AtLeastOne = Field(512, examples=[1024])
    """Tokens of the longest answer."""
    stop: list[Text] = Field(default_factory=list, examples=[["\n\n"]])
    """Texts at which an answer ends."""
    after: Text | None = Field(None, examples=["</think>"])
    """Of an answer, only what follows the last of these counts."""
    cluster: Text | None = Field(None, examples=["passage_id"])
    """A column; rows of one value are not independent, and the intervals say so."""

    @property
    def generated(self) -> bool:
        """Whether answers are written, not only weighed."""
        return self.evaluator not in _BY_LIKELIHOOD


def load_task(name: str, overrides: Sequence[str] = ()) -> tuple[str, Task]:
    """A task's name and what it says, from a file or by the name of one that ships, with ``key=value`` overrides.

    Another path of rows is other rows: split, configuration and revision of the old ones go with them. Local paths open
    from the current directory, or from beside the file. Raises InputError with one line per mistake."""
    file = _find(name)
    text = read_yaml(file, "task", "rows:, evaluator:, prompt:")
    mistakes = Mistakes(file, text)
    for key in ("rows", "shots_from"):
        if isinstance(source := text.value.get(key), dict) and any(one.startswith(f"{key}.path=") for one in overrides):
            for of_the_old in ("name", "split", "revision"):
                source.pop(of_the_old, None)
    apply_overrides(text.value, overrides, mistakes)
    task = validated(text.value, Task, mistakes)
    if task is not None:
        mistakes.found_in_values(_contradictions(task))
        files = Files(file.parent)
        found = {
            key: files.sources([source], ())[0] if source else None
            for key, source in (("rows", task.rows), ("shots_from", task.shots_from))
        }
        mistakes.found_in_values(
            Wrong(("rows", *wrong.loc[1:]) if task.shots_from is None else wrong.loc[1:], wrong.text)
            for wrong in files.wrongs
        )
        task = task.model_copy(update=found)
    if task is None or mistakes:
        raise InputError(mistakes.render())
    return file.stem, task


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    names = evaluation_names()
    wanted = name.removeprefix("recipes/").removeprefix("evaluations/").removesuffix(".yaml")
    if wanted in names:
        return EVALUATIONS / f"{wanted}.yaml"
    if path.is_dir():
        raise InputError(f"{name}: is a folder; give a task file")
    if is_stock(name):
        raise InputError(f"{name}: lm_eval's tasks are for hybrid-ft evaluate; name a task file, or one that ships")
    near = did_you_mean(wanted, names) or nearest_file(name)
    raise InputError(f"{name}: no such task file, and no shipped task has that name ({', '.join(names)}){near}")


def _contradictions(task: Task) -> Iterator[Wrong]:
    """Values that are fine alone and wrong together."""
    yield from secrets(task.model_dump())
    kind = task.evaluator
    if (task.rows is None) == (task.made is None):
        yield Wrong(("rows",), "a task must have rows or made, and not both", (("made",),))
    if task.made is not None and kind != "contains":
        yield Wrong(("evaluator",), f"got {kind}; must be contains for rows that are made", (("made",),))
    for key, of in (("options", "choice"), ("program", "code")):
        if (getattr(task, key) is not None) != (kind == of):
            rule = f"must be given for evaluator: {of}" if kind == of else f"is for evaluator: {of}, not {kind}"
            yield Wrong((key,), rule, (("evaluator",),))
    if task.per_character and kind != "choice":
        yield Wrong(("per_character",), f"is for evaluator: choice, not {kind}", (("evaluator",),))
    if task.samples > 1 and not (task.temperature and task.generated):
        rule = "needs temperature above 0" if task.generated else f"evaluator: {kind} writes no answers"
        yield Wrong(("samples",), f"got {task.samples}; {rule}", (("temperature",), ("evaluator",)))
    if task.shots_from is not None and not task.shots:
        yield Wrong(("shots",), "must be at least 1 with shots_from")
    if task.shots and task.made is not None:
        yield Wrong(("shots",), f"got {task.shots}; must be 0 for rows that are made")
    if kind in ("calls", "loss") and task.form == "plain":
        yield Wrong(("form",), f"got plain; must be chat for evaluator: {kind}", (("evaluator",),))
    if kind == "loss" and (task.prompt or task.shots):
        yield Wrong(("prompt" if task.prompt else "shots",), "the loss is of rows as they are trained; leave it out")
    options = task.options if isinstance(task.options, list) else []
    templates = [("prompt",), ("program",), *(("options", index) for index in range(len(options)))]
    for loc in templates:
        value = getattr(task, str(loc[0])) if len(loc) == 1 else options[int(loc[1])]
        if isinstance(value, str) and is_template(value):
            try:
                ColumnTemplate(value)
            except ValueError as error:
                yield Wrong(loc, str(error))
