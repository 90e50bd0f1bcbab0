"""What is installed on a rented machine: this program, and the tested libraries."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.mirror.place import PACKAGES

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Recipe

NAME = "hybrid-ft"
_NAMED = r"[A-Za-z0-9][\w.-]*(\[[\w,.-]+\])?"
_REQUIREMENT = re.compile(rf"{_NAMED}( ?([=~!<>]=|[<>]) ?[\w.*+!-]+,?)*|({_NAMED} ?@ ?)?[a-z+]+://\S+", re.ASCII)


@dataclass(frozen=True)
class Install:
    """``package``: a requirement, or the name of ``wheel``, a file to bring. ``libraries``: requirements beside it."""

    package: str
    wheel: Path | None
    libraries: tuple[str, ...]


def install(package: str | None, recipes: Sequence[Recipe]) -> Install:
    """What ``package`` names, else the release that runs here; with the versions of the libraries that run here.

    Raises InputError where nothing that pip can fetch runs here, and for a wheel that is not there.
    """
    libraries = tuple(dict.fromkeys([*_pins(), *(name for recipe in recipes for name in _of_recipe(recipe))]))
    if package is None:
        return Install(_release(), None, libraries)
    if package.endswith(".whl"):
        wheel = Path(package).expanduser()
        if not wheel.is_file():
            raise InputError(
                f"--package: {shown(package)} is not a file; make one with pip wheel --no-deps -w . FOLDER"
            )
        return Install(wheel.name, wheel.resolve(), libraries)
    if not _REQUIREMENT.fullmatch(package) or Path(package).exists():
        raise InputError(
            f"--package: {shown(package)} must be a wheel (.whl) or a requirement that pip knows there, such as {NAME}==1.0"
        )
    return Install(package, None, libraries)


def _release() -> str:
    found = _distribution(NAME)
    if found is None or "dir_info" in json.loads(found.read_text("direct_url.json") or "{}"):
        raise InputError(
            "--package: must be given, what runs here is a checkout; make a wheel with pip wheel --no-deps -w . FOLDER"
        )
    return f"{NAME}=={found.version}"


def _pins() -> list[str]:
    """This program's requirements in the versions that are installed here, without a build's mark (+cpu)."""
    own = _distribution(NAME)
    wanted = [line for line in (own.requires or [] if own else []) if "extra ==" not in line]
    names = [match[0] for line in wanted if (match := re.match(r"[\w.-]+", line))]
    return [_pin(name) for name in names]


def _of_recipe(recipe: Recipe) -> list[str]:
    """What a recipe needs beside the program's requirements."""
    backend = PACKAGES.get((recipe.mirror or "").partition("://")[0])
    beside = [*(["bitsandbytes"] if recipe.model.quantize else []), *([backend] if backend else [])]
    return [_pin(name) for name in (*beside, *recipe.train.trackers)]


def _pin(name: str) -> str:
    found = _distribution(name)
    return name if found is None else f"{name}=={found.version.partition('+')[0]}"


def _distribution(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None
