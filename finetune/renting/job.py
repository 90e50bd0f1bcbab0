"""A recipe made ready for another machine: command, files to bring, name."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.recipe.shipped import find_recipe
from hybrid_ft.finetune.recipe.stage_kinds import PREFERENCE
from hybrid_ft.finetune.recipe.stages import load_stages
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
    stages     the recipe, or those of a file of stages, with what their overrides begin with
    brought    the recipes' local paths
    beside     recipes that a file of stages names: relative paths there, and the absolute ones here
    kept       the mirror that --bucket asks for, as the machine names it
    """

    order: Order
    stages: list[tuple[str, Recipe]]
    name: str
    file: Path | None
    given: str
    overrides: tuple[str, ...]
    brought: list[Input]
    kept: str | None = None
    beside: dict[str, str] = field(default_factory=dict)

    @property
    def recipes(self) -> list[Recipe]:
        return [recipe for _, recipe in self.stages]

    def elsewhere(self) -> list[str]:
        """Arguments of ``hybrid-ft launch`` on a machine that has none of this one's paths, from the
        folder of the inputs."""
        recipe = self.given if self.file is None else f"{self.name}.yaml"
        own = []
        for prefix, one in self.stages:
            caches = [name for name in PREFERENCE if getattr(getattr(one, name), "reference_cache", None)]
            own += [f"{prefix}{name}.reference_cache=null" for name in caches]  # in the run's folder, which stays
            own += [f"{prefix}data.cache=null"] if one.data.cache else []  # beside it
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
    """The job of a recipe, or of a file of stages. Raises InputError for what is wrong here or cannot be carried."""
    found = find_recipe(file)
    overrides = [*overrides, *_mirror(order.mirror)]
    shipped = shipped_name(file)
    raw = read_yaml(found).value
    if "stages" in raw:
        file_of_stages = load_stages(file, overrides)
        stages = [(f"{stage.kind}.", stage.recipe) for stage in file_of_stages.stages if stage.recipe is not None]
        output, asked = file_of_stages.place, file_of_stages.questions
        brought = inputs(stages, output, asked)
        _check_kinds(file, [prefix for prefix, _ in stages], brought)
        brought = [_as_written(item, raw) for item in brought]
        beside = {} if shipped else _beside(found, raw["stages"])
    else:
        recipe = load_recipe(file, overrides)
        stages, output, beside = [("", recipe)], Path(str(recipe.output)), {}
        brought = inputs(stages)
    mirror = stages[0][1].mirror
    if mirror and "://" not in mirror and order.place != "slurm":
        raise InputError(f"mirror: {shown(mirror)} goes with the machine; give a place such as s3://my-runs/mine")
    if mirror and order.bucket:
        raise InputError(f"mirror: {shown(mirror)} not with --bucket, which is a mirror; leave one of them out")
    name = re.sub(r"[^a-z0-9]+", "-", output.name.lower()).strip("-")[:40].strip("-") or "run"
    name = name if name[0].isalpha() else f"run-{name}"
    return Job(
        order,
        stages,
        name,
        None if shipped else found.resolve(),
        shipped or file,
        tuple(overrides),
        brought,
        _in_bucket(order, name),
        beside,
    )


def _check_kinds(file: str, prefixes: list[str], brought: list[Input]) -> None:
    """An override of a kind goes to every stage of it."""
    for item in brought:
        kind = item.key.partition(".")[0]
        if prefixes.count(f"{kind}.") > 1:
            raise InputError(
                f"{file}: {item.key} is on this machine, and an override goes to all stages of its kind; give the {kind}"
                " recipes one after the other"
            )


def _as_written(item: Input, raw: dict[str, Any]) -> Input:
    """A source that the file of stages names by its path alone has no key of its own."""
    found = re.fullmatch(r"evaluate\.sources\.(\d+)\.path", item.key)
    sources = (raw.get("evaluate") or {}).get("sources") or []
    if found and isinstance(dict(enumerate(sources)).get(int(found[1])), str):
        return replace(item, key=item.key.removesuffix(".path"))
    return item


def _beside(file: Path, entries: list[Any]) -> dict[str, str]:
    """The recipes that a file of the user's names, which must lie below its own folder."""
    found: dict[str, str] = {}
    for given in (value for entry in entries for value in entry.values()):
        if not isinstance(given, str) or not (file.parent / given).is_file():
            continue
        if os.path.isabs(given) or ".." in Path(given).parts:
            raise InputError(
                f"{file}: stages: {shown(given)} must lie beside the file or below it, to be brought with it"
            )
        found[Path(given).as_posix()] = str((file.parent / given).resolve())
    return found


def _in_bucket(order: Order, name: str) -> str | None:
    """The mirror in the bucket. Only SkyPilot mounts one: it brings the bucket's credentials, the
    hub's needs its token."""
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
