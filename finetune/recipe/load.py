"""From a file and overrides to a checked recipe, or all its mistakes.

Neither torch nor transformers nor datasets is imported, so that a wrong recipe is refused within a second. Secrets do
not belong in a recipe: trackers and the hub read their own environment variables, and nothing here is expanded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.adapter_base import take_base
from hybrid_ft.finetune.recipe.checks import contradictions
from hybrid_ft.finetune.recipe.files import resolve_files
from hybrid_ft.finetune.recipe.handed_on import Before, take_over
from hybrid_ft.finetune.recipe.keys import sections
from hybrid_ft.finetune.recipe.mistakes import Mistakes
from hybrid_ft.finetune.recipe.overrides import apply_overrides
from hybrid_ft.finetune.recipe.preference_checks import preference_contradictions
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.recipe.shipped import find_recipe
from hybrid_ft.finetune.recipe.stage_kinds import PREFERENCE
from hybrid_ft.finetune.recipe.yaml_file import Loc, YamlFile, read_yaml

Schema = TypeVar("Schema", bound=BaseModel)


def load_recipe(path: str | Path, overrides: Sequence[str] = (), stage: str | None = None) -> Recipe:
    """Read a recipe file, or a shipped recipe by name, with ``key=value`` overrides
    (``data.sources.0.path=rows.jsonl``).

    ``stage``: sft, or a preference stage, whose section is added where a recipe has none; it must have no other.
    In what is returned ``output`` and ``train.learning_rate`` are set, and every local path can be opened as it
    stands: it is taken from the current directory, else from the recipe's folder, else from the shipped files.
    Raises InputError with one line per mistake, all of them.
    """
    file = find_recipe(str(path))
    text = read_yaml(file)
    if "stages" in text.value:
        raise InputError(f"{file}:{text.lines['stages',]}: stages: this file holds stages; run it with hybrid-ft run")
    recipe, mistakes = resolve_recipe(text, file, overrides, stage)
    if mistakes:
        raise InputError(mistakes.render())
    assert recipe is not None
    return recipe


def resolve_recipe(
    text: YamlFile,
    file: Path,
    overrides: Sequence[str] = (),
    stage: str | None = None,
    before: Before | None = None,
    output: str | None = None,
) -> tuple[Recipe | None, Mistakes]:
    """The recipe that stands in ``file``, as far as it is right, and what is wrong with it.

    ``before``: the stage that this one starts from, in place of the recipe's own base.
    ``output``: in place of the recipe's own.
    """
    mistakes = Mistakes(file, text)
    raw = text.value
    apply_overrides(raw, overrides, mistakes)
    if output is not None or raw.get("output") is None:
        raw["output"] = output or f"runs/{file.stem}"
    for name in PREFERENCE:
        if name in raw or stage == name:
            raw[name] = {} if raw.get(name) is None else raw[name]
    mistakes.found_in_values([*take_over(raw, before), *take_base(raw, file.parent)])
    recipe = validated(raw, Recipe, mistakes)
    if recipe is not None:
        mistakes.found_in_values(contradictions(recipe))
        mistakes.found_in_values(preference_contradictions(recipe, stage))
        recipe, wrongs = resolve_files(recipe, file.parent, before is not None)
        mistakes.found_in_values(wrongs)
    return recipe, mistakes


def validated(raw: dict[str, Any], schema: type[Schema], mistakes: Mistakes) -> Schema | None:
    """What ``raw`` says; where keys are wrong, the same with their defaults instead, for the checks that follow."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
    mistakes.found_in_schema(details, schema)
    try:
        return schema.model_validate(_right_part(raw, schema, {detail["loc"] for detail in details}))
    except ValidationError:
        return None


def _right_part(raw: dict[str, Any], schema: type[BaseModel], wrong: Iterable[Loc], loc: Loc = ()) -> dict[str, Any]:
    """``raw`` without what is wrong. A missing key that must be given gets its example: no check
    that reads it counts."""
    broken = {place[:length] for place in wrong for length in range(len(place) + 1)}
    kept: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        here = (*loc, name)
        section, is_list = next(sections(field.annotation), (None, False))
        given = raw.get(name)
        if here not in broken:
            if name in raw:
                kept[name] = given
        elif section is not None and is_list and isinstance(given, list) and given:
            items = [item if isinstance(item, dict) else {} for item in given]
            kept[name] = [_right_part(item, section, wrong, (*here, index)) for index, item in enumerate(items)]
        elif section is not None and isinstance(given, dict):
            kept[name] = _right_part(given, section, wrong, here)
        if name not in kept and field.is_required():
            kept[name] = _example(field)
    return kept


def _example(field: FieldInfo) -> Any:
    section, is_list = next(sections(field.annotation), (None, False))
    if section is None:
        return (field.examples or [None])[0]
    required = {name: _example(inner) for name, inner in section.model_fields.items() if inner.is_required()}
    return [required] if is_list else required
