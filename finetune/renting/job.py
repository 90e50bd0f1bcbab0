"""A recipe made ready for another machine: command, files to bring, name."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.recipe.shipped import find_recipe
from hybrid_ft.finetune.recipe.stage_kinds import PREFERENCE
from hybrid_ft.finetune.recipe.yaml_file import read_yaml
from hybrid_ft.finetune.renting.inputs import Input, inputs, shipped_name
from hybrid_ft.finetune.renting.order import HUB_BUCKETS, Order

COPIES = "/copies"
"""Where a bucket is mounted that holds the run's mirror."""
RUNS = "runs"
"""Where the run's folder lies, on the machine's own disk, below the folder that the command runs in."""
WIDTH = 100


@dataclass(frozen=True)
class Job:
    """A recipe and what was asked for it.

    name       of the recipe, in letters, digits, dots and dashes that every place takes
    file       the recipe's own file; None for one that ships, which is there by its name
    given      the recipe as the user named it
    overrides  the user's
    brought    the recipe's local paths
    kept       the mirror that --bucket asks for, as the machine names it
    """

    order: Order
    recipe: Recipe
    name: str
    file: Path | None
    given: str
    overrides: tuple[str, ...]
    brought: list[Input]
    kept: str | None = None

    def elsewhere(self) -> list[str]:
        """Arguments of ``hybrid-ft launch`` on a machine that has none of this one's paths, from the folder of the inputs."""
        recipe = self.given if self.file is None else f"{self.name}.yaml"
        caches = [name for name in PREFERENCE if getattr(getattr(self.recipe, name), "reference_cache", None)]
        own = [f"{name}.reference_cache=null" for name in caches]  # in the run's folder, which stays
        own += ["data.cache=null"] if self.recipe.data.cache else []  # beside it
        return [
            "launch",
            recipe,
            *self.overrides,
            *(item.override for item in self.brought),
            *own,
            *_mirror(self.kept),
            f"output={RUNS}/{self.name}",
            "--processes",
            str(self.order.gpus),
        ]


def make_job(file: str, overrides: Sequence[str], order: Order) -> Job:
    """The job of a recipe. Raises InputError for a recipe that is wrong here and for a file of stages."""
    found = find_recipe(file)
    overrides = [*overrides, *_mirror(order.mirror)]
    if "stages" in read_yaml(found).value:
        raise InputError(f"{file}: holds stages; a job trains one recipe: give those of its stages one after the other")
    recipe = load_recipe(file, overrides)
    if recipe.mirror and "://" not in recipe.mirror and order.place != "slurm":
        raise InputError(
            f"mirror: {shown(recipe.mirror)} goes with the machine; give a place such as s3://my-runs/mine"
        )
    if recipe.mirror and order.bucket:
        raise InputError(f"mirror: {shown(recipe.mirror)} not with --bucket, which is a mirror; leave one of them out")
    shipped = shipped_name(file)
    name = re.sub(r"[^a-z0-9]+", "-", Path(str(recipe.output)).name.lower()).strip("-")[:40].strip("-") or "run"
    name = name if name[0].isalpha() else f"run-{name}"
    kept = _in_bucket(order, name)
    return Job(
        order,
        recipe.model_copy(update={"mirror": kept}) if kept else recipe,
        name,
        None if shipped else found.resolve(),
        shipped or file,
        tuple(overrides),
        inputs(recipe),
        kept,
    )


def _in_bucket(order: Order, name: str) -> str | None:
    """The mirror in the bucket. Only SkyPilot mounts one: it brings the bucket's credentials, the hub's needs its token."""
    if order.bucket is None:
        return None
    return f"{HUB_BUCKETS}{order.hub_bucket}/{name}" if order.place == "hf" else f"{COPIES}/{name}"


def _mirror(place: str | None) -> list[str]:
    return [f"mirror={json.dumps(place, ensure_ascii=False)}"] if place else []


def words(arguments: Sequence[str]) -> str:
    """A command for a shell, every word quoted where it must be, in lines of a readable length."""
    lines = [""]
    for word in map(shlex.quote, arguments):
        if lines[-1] and len(lines[-1]) + len(word) > WIDTH:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n    ".join(lines)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, in which a script can be read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def readable(value: dict[str, Any]) -> str:
    """YAML 1.1 in the order given, which every reader takes for the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)


def check_printable(paths: Sequence[str]) -> None:
    """Refuse paths with line ends and other control characters."""
    for path in paths:
        if not path.isprintable():
            raise InputError(f"{shown(path)}: holds a line end or another control character; rename it")
