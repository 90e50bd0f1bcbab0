"""A recipe's local files, and what they are called on another machine."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.recipe.checks import SHAPE_PRESETS, TRAINED_PRESETS
from hybrid_ft.finetune.recipe.files import CHAT_TEMPLATES
from hybrid_ft.finetune.recipe.shipped import PACKAGE_ROOT, RECIPES, column_names, find_recipe

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source
    from hybrid_ft.finetune.recipe.schema import Recipe
    from hybrid_ft.finetune.recipe.stages import Questions

_MOST_FILES = 100
_SHIPPED = ("recipes", "datasets")
_NAMES = {
    "path": (*TRAINED_PRESETS, *SHAPE_PRESETS),
    "tokenizer": (),
    "adapter": (),
    "chat_template": CHAT_TEMPLATES,
}


@dataclass(frozen=True)
class Input:
    """One value of a recipe that names something on this machine.

    key     of the recipe
    value   what it must be there, relative to the folder that the command runs in
    files   what has to be brought: relative paths there, and the absolute ones here; none for what ships
    """

    key: str
    value: str
    files: dict[str, str]

    @property
    def override(self) -> str:
        return f"{self.key}={self.value}"


def shipped_name(file: str) -> str | None:
    """The name of a recipe that ships, which is on every machine that has the program; None for a
    file of the user's."""
    path = find_recipe(file).resolve()
    return path.relative_to(RECIPES).with_suffix("").as_posix() if path.is_relative_to(RECIPES) else None


def inputs(recipes: list[tuple[str, Recipe]], made: Path | None = None, asked: Questions | None = None) -> list[Input]:
    """Every local path of resolved recipes, by its key. Raises InputError for what cannot be carried.

    recipes   with what their keys begin with, such as ``sft.``, nothing for one alone
    made      the folder of what the run itself makes, which is not brought
    asked     a file's own questions
    """
    paths = [(f"{prefix}{key}", path) for prefix, recipe in recipes for key, path in _paths(recipe)]
    paths += _of_sources("evaluate.sources", asked.sources if asked else [])
    here = [(key, path) for key, path in paths if os.path.exists(path) or _pattern(path)]
    own = made.absolute() if made else None
    here = [(key, path) for key, path in here if own is None or not Path(path).absolute().is_relative_to(own)]
    return [_input(key, path, number) for number, (key, path) in enumerate(here)]


def _paths(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What may be a local path: the names of what ships are left out, also where a file here has such a name."""
    model = recipe.model
    named = {"path": model.path, "tokenizer": model.tokenizer, "adapter": model.adapter}
    for key, path in (named | {"chat_template": model.chat_template}).items():
        if path is not None and path not in _NAMES[key]:
            yield f"model.{key}", path
    yield from _of_sources("data.sources", recipe.data.sources)
    yield from _of_sources("data.eval.sources", recipe.data.eval.sources)


def _of_sources(key: str, sources: list[Source]) -> Iterator[tuple[str, str]]:
    for number, source in enumerate(sources):
        yield f"{key}.{number}.path", source.path
        if source.columns is not None and source.columns.file not in (None, *column_names()):
            yield f"{key}.{number}.columns", str(source.columns.file)


def _pattern(path: str) -> bool:
    return not os.path.exists(path) and glob.has_magic(path)


def _input(key: str, path: str, number: int) -> Input:
    inside = Path(path).absolute()
    if any(inside.is_relative_to(PACKAGE_ROOT / folder) for folder in _SHIPPED) and os.path.isabs(path):
        return Input(key, inside.relative_to(PACKAGE_ROOT).as_posix(), {})
    place = f"inputs/{number}"
    if _pattern(path):
        found = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
        if len(found) > _MOST_FILES:
            raise InputError(
                f"{key}: {shown(path)} matches {len(found):,} files; to bring more than {_MOST_FILES}, name their folder"
            )
        files = {f"{place}/{index:03}-{_safe(file)}": os.path.realpath(file) for index, file in enumerate(found)}
        return Input(key, f"{place}/*", files)
    there = f"{place}/{_safe(path)}"
    return Input(key, there, {there: os.path.realpath(path)})


def _safe(path: str) -> str:
    """A file's own name, in characters that neither a shell nor a pattern nor YAML reads anything into."""
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", os.path.basename(os.path.abspath(path)))


def check_without_links(brought: list[Input]) -> None:
    """Refuse folders that hold links: uploads leave links out, and the hub's cache is made of them."""
    for item in brought:
        for place in item.files.values():
            for folder, folders, names in os.walk(place):
                link = next((name for name in (*folders, *names) if os.path.islink(os.path.join(folder, name))), None)
                if link is not None:
                    raise InputError(
                        f"{item.key}: {shown(os.path.relpath(os.path.join(folder, link), place))} is a link, "
                        "which is not uploaded;"
                        " copy the folder with cp -rL, or give the hub name"
                    )
