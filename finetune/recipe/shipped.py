"""The files that ship with the package: recipes/ and datasets/."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from hybrid_ft.errors import InputError

# The repository's root in an editable install, site-packages/hybrid_ft in a plain one.
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
RECIPES = PACKAGE_ROOT / "recipes"
CARDS = PACKAGE_ROOT / "datasets" / "cards"
PAIR_CARDS = CARDS / "pairs"


def recipe_names() -> list[str]:
    """Names of the shipped recipes, their paths below recipes/ without the suffix."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def card_names(folder: Path = CARDS) -> list[str]:
    """Names of the shipped dataset cards; those of preference sets lie in ``PAIR_CARDS``."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """A recipe file as given, or a shipped recipe by name (``quickstart/sft``), by its last part, or by its folder's
    name where that leaves no choice. Raises InputError when there is none.
    """
    path = Path(name)
    if os.path.isfile(path):
        return path
    if os.path.isdir(path):
        raise InputError(f"{name}: is a folder; give a recipe file")
    names = recipe_names()
    wanted = name.removeprefix("recipes/").removesuffix(".yaml")
    found = (
        [known for known in names if known == wanted]
        or [known for known in names if known.endswith(f"/{wanted}")]
        or [known for known in names if known.startswith(f"{wanted}/")]
    )
    if len(found) == 1:
        return RECIPES / f"{found[0]}.yaml"
    if found:
        raise InputError(f"{name}: more than one shipped recipe has that name: {', '.join(found)}")
    raise InputError(f"{name}: no such recipe file, and no shipped recipe has that name{did_you_mean(wanted, names)}")


def shipped(path: str) -> Path | None:
    """The shipped file that a relative path names (``datasets/quickstart/train.jsonl``), if there is one."""
    parts = Path(path).parts
    candidate = PACKAGE_ROOT / path
    inside = parts[:1] in (("datasets",), ("recipes",)) and ".." not in parts
    return candidate if inside and os.path.exists(candidate) else None


def did_you_mean(wrong: str, known: Sequence[str]) -> str:
    """``; did you mean X?`` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(wrong[:80], known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
