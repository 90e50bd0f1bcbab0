"""A run's identity: the keys, digests and versions that decide its weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.keys import free_keys
from hybrid_ft.finetune.recipe.shipped import digest_of_code
from hybrid_ft.finetune.runs.atomic import sha256
from hybrid_ft.hybrid_model.checkpoint.config import BUNDLED
from hybrid_ft.hybrid_model.families.presets import TINY

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe.schema import Recipe

LIBRARIES = ("hybrid-ft", "torch", "transformers", "trl", "peft", "accelerate")

# What computes a weight. Commands, screens and the recipe's reader do not: what they say stands in the recipe's keys.
_CODE = ("kernels", "hybrid_model", "finetune/data", "finetune/training", "finetune/models.py")
_ENDS = 2**16  # bytes
_PLACES = ("path", "tokenizer", "chat_template", "file", "adapter")


def run_identity(recipe: Recipe) -> dict[str, Any]:
    """All that decides the weights and is known before anything heavy is loaded."""
    return recipe_identity(recipe) | library_versions() | {"code": code_digest()}


@cache
def library_versions() -> dict[str, str]:
    """Of the libraries that compute a weight."""
    return {f"version.{name}": version(name) for name in LIBRARIES}


def recipe_identity(recipe: Recipe) -> dict[str, Any]:
    """Dotted recipe keys and their values, without those marked ``Free``; a local file stands as the sha256
    of what lies there."""
    free = free_keys(recipe)
    if recipe.data.streaming:  # its files may be too large to be read twice; their digest comes with the rows
        free = [*free, *(f"data.sources.{number}.path" for number in range(len(recipe.data.sources)))]
    identity = {
        key: value
        for key, value in _flat(recipe.model_dump())
        if not any(key == other or key.startswith(f"{other}.") for other in free)
    }
    if identity["model.path"] == TINY:
        identity["model.path"] = str(BUNDLED)
    return with_contents(identity, weights=not recipe.model.from_scratch)


def with_contents(values: dict[str, Any], weights: bool = True) -> dict[str, Any]:
    """Dotted keys and their values, where a local file or folder stands as the sha256 of what lies there.

    ``weights``: those of a model's folder count too.
    """
    identity = dict(_flat(values))
    for key, value in identity.items():
        if key.rpartition(".")[2] in _PLACES and isinstance(value, str) and os.path.exists(value):
            identity[key] = _content(Path(value), weights)
    return identity


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def stamps(files: Iterable[Path]) -> list[str]:
    """Of files that are too large to be read for it: path, size and time of the last change."""
    return [f"{path} {found.st_size} {found.st_mtime_ns}" for path in files for found in (path.stat(),)]


def digest_of(value: Any) -> str:
    """Of anything that is JSON, and of what is not by its text."""
    return digest(json.dumps(value, sort_keys=True, default=str).encode())


def short_digest(value: Any) -> str:
    """A value as it is shown: ``not set`` for None, and no more of a digest than tells two apart."""
    text = "not set" if value is None else str(value)
    return f"{text[:19]}..." if text.startswith("sha256:") else text


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of its words and rules, and of its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return digest(f"{words}\n{tokenizer.chat_template}".encode())


def rows_digest(parts: Iterable[tuple[Dataset | None, Any]], columns: Sequence[str]) -> str:
    """Of datasets in their order, each with what is to count beside its ``columns`` of lists of integers."""
    total = hashlib.sha256()
    for dataset, beside in parts:
        total.update(json.dumps(beside).encode())
        for table in dataset.with_format("arrow").iter(10_000) if dataset else ():
            for column in columns:
                lists = table[column].combine_chunks()
                total.update(pc.list_value_length(lists).to_numpy())
                total.update(lists.flatten().to_numpy())
    return "sha256:" + total.hexdigest()


def ends_digest(files: Sequence[str]) -> str:
    """Of files that are too large to be read twice: their sizes, and what they begin and end with."""
    found = []
    for file in files:
        size = os.path.getsize(file)
        with open(file, "rb") as stream:
            begin = stream.read(_ENDS)
            stream.seek(max(size - _ENDS, 0))
            found.append([size, digest(begin + stream.read(_ENDS))])
    return digest_of(found)


@cache
def code_digest() -> str:
    """Of what decides weights, as it lay here when this was first asked for, since that is what this process runs."""
    return "sha256:" + digest_of_code(_CODE)


def _content(place: Path, weights: bool) -> str:
    """sha256 of a file, or of the files of a model or tokenizer folder that decide what is loaded from it."""
    kinds = ("*.json", "*.jinja", "*.safetensors") if weights else ("*.json", "*.jinja")
    files = (
        [place] if place.is_file() else sorted(file for kind in kinds for file in place.glob(kind) if file.is_file())
    )
    try:
        sums = sha256(files)
    except OSError as error:
        raise InputError(f"{error.filename or place}: cannot be read ({error.strerror or error})") from error
    if not place.is_dir():
        return "sha256:" + sums[place]
    return digest("".join(f"{file.name}\0{sums[file]}\n" for file in files).encode())


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items:
        yield prefix, value
    for key, inner in items:
        yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
