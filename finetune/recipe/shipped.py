"""The files that ship with the package: recipes/ and datasets/."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from hybrid_ft.errors import InputError, did_you_mean

# The repository's root in an editable install, site-packages/hybrid_ft in a plain one.
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
RECIPES = PACKAGE_ROOT / "recipes"
EVALUATIONS = RECIPES / "evaluations"
COLUMNS = PACKAGE_ROOT / "datasets" / "columns"
STOCK = "lm_eval:"
"""Before the name, or the file, of a task that is lm_eval's."""


def recipe_names() -> list[str]:
    """Names of the shipped recipes, their paths below recipes/ without the suffix."""
    files = (path for path in RECIPES.rglob("*.yaml") if EVALUATIONS not in path.parents)
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in files)


def evaluation_names() -> list[str]:
    """Names of the shipped evaluation tasks, the stems of recipes/evaluations/."""
    return sorted(path.stem for path in EVALUATIONS.glob("*.yaml"))


def task_called(task: str) -> str:
    """What a table calls a task that is given by name or file: the stem of a file, ``lm_eval:``
    before one of lm_eval's."""
    if not task.startswith(STOCK):
        return Path(task).stem
    own = task.removeprefix(STOCK)
    return f"{STOCK}{Path(own).stem if is_yaml(own) else own}"


def is_yaml(path: str) -> bool:
    return Path(path).suffix in (".yaml", ".yml")


def column_names() -> list[str]:
    """Names of the shipped column mappings."""
    return sorted(path.stem for path in COLUMNS.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """A recipe file as given, or a shipped recipe by its name: ``quickstart/sft``, also
    ``recipes/quickstart/sft.yaml``.

    Raises InputError when there is none.
    """
    path = Path(name)
    if os.path.isfile(path):
        return path
    names = recipe_names()
    wanted = name.removeprefix("recipes/").removesuffix(".yaml")
    if wanted in names:
        return RECIPES / f"{wanted}.yaml"
    if os.path.isdir(path):
        raise InputError(f"{name}: is a folder; give a recipe file")
    below = [known for known in names if wanted in known.split("/")]
    near = f"; did you mean {' or '.join(below)}?" if below else did_you_mean(wanted, names)
    raise InputError(f"{name}: no such recipe file, and no shipped recipe has that name{near}")


def shipped(path: str) -> Path | None:
    """The shipped file that a relative path names (``datasets/quickstart/train.jsonl``), if there is one."""
    parts = Path(path).parts
    candidate = PACKAGE_ROOT / path
    inside = parts[:1] in (("datasets",), ("recipes",)) and ".." not in parts
    return candidate if inside and os.path.exists(candidate) else None


def digest_of_code(names: Iterable[str]) -> str:
    """sha256 of the code and templates in these folders and files of the package, as they lie here: a version number
    stays while its code is worked on."""
    total = hashlib.sha256()
    for name in names:
        place = PACKAGE_ROOT / name
        files = [place] if place.is_file() else [file for file in place.rglob("*") if file.suffix in (".py", ".jinja")]
        for file in sorted(files):
            total.update(f"{file.relative_to(PACKAGE_ROOT).as_posix()}\0".encode() + file.read_bytes())
    return total.hexdigest()
