"""A file of stages: its schema, its recipes, all its mistakes at once.

stages:
  - sft: instruct-sft.yaml        # a recipe beside this file or by name, or the recipe itself
  - dpo: {data: {...}, dpo: {beta: 5}}
  - export: {dtype: bfloat16}     # the last model as one folder, checked
evaluate:                         # prompts that the base and every stage's model are asked
  sources: [held-out.jsonl]
output: runs/instruct             # null: runs/ and the file's stem
mirror: s3://my-runs/instruct     # where the stages' folders are copied to
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, create_model, model_validator

from hybrid_ft.errors import InputError, did_you_mean
from hybrid_ft.finetune.recipe.checks import secrets
from hybrid_ft.finetune.recipe.data_section import Data, Source
from hybrid_ft.finetune.recipe.files import Files
from hybrid_ft.finetune.recipe.handed_on import Before
from hybrid_ft.finetune.recipe.load import resolve_recipe, validated
from hybrid_ft.finetune.recipe.mistakes import Mistakes, Place, Wrong
from hybrid_ft.finetune.recipe.model_section import Lora
from hybrid_ft.finetune.recipe.overrides import apply_overrides
from hybrid_ft.finetune.recipe.schema import Recipe, changed
from hybrid_ft.finetune.recipe.section import NULL_IS_EMPTY, AtLeastOne, Section, Text
from hybrid_ft.finetune.recipe.shipped import find_recipe
from hybrid_ft.finetune.recipe.stage_kinds import PREFERENCE, STAGE_KINDS, StageKind
from hybrid_ft.finetune.recipe.yaml_file import Loc, YamlFile, read_yaml

TRAINING = tuple(STAGE_KINDS)


def _is_recipe_or_file(value: Any) -> Any:
    if value is None or isinstance(value, dict) or (isinstance(value, str) and value):
        return value
    raise ValueError("must be a recipe or the name of its file")


RecipeOrFile = Annotated[Any, AfterValidator(_is_recipe_or_file)]
SourceOrPath = Annotated[Source, BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value)]


def _of_kind(kind: StageKind) -> str:
    return f"{kind.title[0].upper()}{kind.title[1:]}: a recipe, or the name of its file."


class Export(Section):
    """The model of the stage before as one folder, opened again in plain transformers and compared."""

    dtype: Literal["float32", "bfloat16"] | None = Field(None, examples=["bfloat16"])
    """Dtype of the weights; null: as they were saved."""


class _OneKind(Section):
    @model_validator(mode="before")
    @classmethod
    def _is_mapping(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(_ONE_KIND)  # noqa: TRY004 pydantic makes mistakes of these alone
        return value

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError(_ONE_KIND)
        return self


_ONE_KIND = f"must be one of {', '.join((*TRAINING, 'export'))} with what it needs, such as {{sft: mine.yaml}}"
if TYPE_CHECKING:
    Entry = _OneKind
else:
    Entry = create_model(
        "Entry",
        __base__=_OneKind,
        __doc__="One stage; exactly one of these keys.",
        **{
            name: (RecipeOrFile, Field(None, examples=[kind.file], description=_of_kind(kind)))
            for name, kind in STAGE_KINDS.items()
        },
        export=(
            Annotated[Export, NULL_IS_EMPTY],
            Field(
                default_factory=Export,
                examples=[{"dtype": "bfloat16"}],
                description="The last model as one folder.",
            ),
        ),
    )


class Questions(Section):
    """Prompts that the base and every stage's model are asked, for the table at the end."""

    sources: list[SourceOrPath] = Field(min_length=1, examples=[["data/held-out.jsonl"]])
    """Held-out rows: sources as in a recipe's data.sources, or plain paths."""
    max_new_tokens: AtLeastOne = Field(256, examples=[64])
    """Most tokens in an answer."""

    @property
    def data(self) -> Data:
        """How the rows are read."""
        return Data(sources=self.sources, packing=False)


class StagesFile(Section):
    """Stages in order, each starting from the model of the one before."""

    stages: list[Entry] = Field(min_length=1, examples=[[{"sft": "mine.yaml"}]])
    """One stage each; the first one trains."""
    evaluate: Questions | None = Field(None, examples=[{"sources": ["data/held-out.jsonl"]}])
    """Questions for every model."""
    output: Text | None = Field(None, examples=["runs/instruct"])
    """The folder for the stages' folders; null: runs/ and the file's stem."""
    mirror: Text | None = Field(None, examples=["s3://my-runs/instruct"])
    """A place to mirror every stage's folder to, under the folder's name; null: none."""


@dataclass(frozen=True)
class Stage:
    """``recipe`` of training; an export has a dtype instead, None: the model's own."""

    kind: str
    folder: Path
    recipe: Recipe | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Stages:
    """``place``: the folder that the stages' folders lie in; ``questions``: what every model is asked, if anything."""

    place: Path
    stages: list[Stage]
    questions: Questions | None


def load_stages(path: str | Path, overrides: Sequence[str] = ()) -> Stages:
    """The stages of a file, every recipe validated. Overrides of a recipe begin with the stage's kind:
    ``dpo.train.steps=3``.

    In all but the first ``model.path`` is the folder that the stage before will have made. Imports nothing heavy.
    Raises InputError with one line per mistake.
    """
    file = find_recipe(str(path))
    text = read_yaml(file, "file of stages", "stages:, evaluate:, output:, mirror:")
    raw, mistakes = text.value, Mistakes(file, text)
    if "stages" not in raw and raw.keys() & Recipe.model_fields.keys() - StagesFile.model_fields.keys():
        raise InputError(f"{file}: stages is missing: this is a recipe; run it with hybrid-ft {_command(raw)}")
    entries = raw["stages"] if isinstance(raw.get("stages"), list) else []
    of_recipes = _apply_own(raw, entries, overrides, mistakes)
    output = raw.get("output")
    place = Path(os.path.expanduser(output if isinstance(output, str) and output else f"runs/{file.stem}"))
    mistakes.found_in_values([*secrets(str(place), ("output",)), *secrets(raw.get("mirror"), ("mirror",))])
    whole = validated(raw, StagesFile, mistakes)
    recipes = _recipes(entries, place, file, text, of_recipes, mistakes)
    questions = _asked(whole.evaluate, file, mistakes) if whole and whole.evaluate else None
    if entries and _kind(entries[0]) == "export":
        mistakes.found_in_values(
            [
                Wrong(
                    ("stages", 0),
                    f"got export; the first stage must train: {', '.join(TRAINING[:-1])} or {TRAINING[-1]}",
                )
            ]
        )
    for number, entry in enumerate(entries[1:], start=1):
        if _kind(entries[number - 1]) == "reward" and (kind := _kind(entry)) not in ("reward", "export"):
            why = f"got {kind} after reward, whose model writes nothing; let reward be the last stage that trains"
            mistakes.found_in_values([Wrong(("stages", number), why)])
    if mistakes:
        raise InputError(mistakes.render())
    assert whole is not None
    if whole.mirror:
        for number, recipe in recipes.items():
            name = _folder(place, number, _kind(entries[number])).name
            recipes[number] = recipe.model_copy(update={"mirror": f"{whole.mirror.rstrip('/')}/{name}"})
    stages = [
        Stage(kind, _folder(place, number, kind), recipes.get(number), vars(entry)["export"].dtype)
        for number, entry in enumerate(whole.stages)
        for kind in entry.model_fields_set
    ]
    return Stages(place, stages, questions)


def _command(raw: dict[str, Any]) -> str:
    return next((name for name in PREFERENCE if name in raw), "sft")


def _kind(entry: Any) -> str:
    return str(next(iter(entry))) if isinstance(entry, dict) and len(entry) == 1 else ""


def _folder(place: Path, number: int, kind: str) -> Path:
    return place / f"{number + 1}-{kind}"


def _apply_own(raw: dict[str, Any], entries: list[Any], overrides: Sequence[str], mistakes: Mistakes) -> list[str]:
    """Lay the overrides that concern the file itself over it, and return those of the recipes in it."""
    kinds = list(map(_kind, entries))
    known = [*dict.fromkeys(filter(None, kinds)), "evaluate", "output", "mirror"]
    of_recipes: list[str] = []
    for override in overrides:
        key = override.partition("=")[0]
        first, _, rest = key.partition(".")
        if first in TRAINING and first in kinds and rest != "output":
            of_recipes.append(override)
        elif first == "export" and first in kinds:
            numbered = [f"stages.{number}.{override}" for number, kind in enumerate(kinds) if kind == first]
            apply_overrides(raw, numbered, mistakes)
        elif first in ("evaluate", "output", "mirror"):
            apply_overrides(raw, [override], mistakes)
        elif rest == "output":
            mistakes.add(Place(0, f"override {key}"), "a stage's folder lies in that of the file; set output")
        else:
            rule = f"must begin with {', '.join(known[:-1])} or {known[-1]}, such as sft.train.steps=3"
            mistakes.add(Place(0, f"override {key}"), rule + did_you_mean(first, known))
    return of_recipes


def _recipes(
    entries: list[Any], place: Path, file: Path, text: YamlFile, overrides: list[str], mistakes: Mistakes
) -> dict[int, Recipe]:
    """The recipe of every stage that trains, by the stage's number from 0; what is wrong with one is noted."""
    recipes: dict[int, Recipe] = {}
    own_lora: Lora | None = None
    for number, entry in enumerate(entries):
        kind = _kind(entry)
        if kind not in TRAINING or not isinstance(given := entry[kind], str | dict | None):
            continue
        mine = [override.partition(".")[2] for override in overrides if override.partition(".")[0] == kind]
        try:
            where, inner = _recipe_text(given, ("stages", number, kind), file, text)
        except InputError as error:
            mistakes.found_elsewhere(str(error))
            continue
        before = None
        if number > 0:
            kind_before = _kind(entries[number - 1])
            before = Before(kind_before, _folder(place, number - 1, kind_before), recipes.get(number - 1))
        recipe, found = resolve_recipe(inner, where, mine, kind, before, str(_folder(place, number, kind)))
        mistakes.include(found)
        if recipe is None:
            continue
        if before is not None and before.recipe is not None and recipe.model.adapter == before.adapter:
            recipes[number - 1] = changed(before.recipe, "model", lora=own_lora)  # handed on unmerged
        own_lora = lora = recipe.model.lora
        if lora and number + 1 < len(entries):
            lora = lora.model_copy(update={"merge": True})  # the next stage starts from whole weights
        recipes[number] = changed(recipe, "model", lora=lora)
    return recipes


def _recipe_text(given: Any, loc: Loc, file: Path, text: YamlFile) -> tuple[Path, YamlFile]:
    """A stage's recipe as text: from a file of its own, or from this one with this one's line numbers."""
    if isinstance(given, str):
        beside = file.parent / given
        where = beside if beside.is_file() else find_recipe(given)
        return where, read_yaml(where)
    depth = len(loc)
    lines = {inner[depth:]: line for inner, line in text.lines.items() if inner[:depth] == loc}
    return file, YamlFile({} if given is None else given, lines, [])


def _asked(questions: Questions, file: Path, mistakes: Mistakes) -> Questions:
    """The questions with paths that open from the current directory."""
    files, loc = Files(file.parent), ("evaluate", "sources")
    sources = files.sources(questions.sources, loc)
    mistakes.found_in_values([*secrets(questions.model_dump(), ("evaluate",)), *files.wrongs])
    return questions.model_copy(update={"sources": sources})
