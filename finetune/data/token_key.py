"""What a source's tokens depend on: equal keys, equal rows and counts."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.sources.hub import load_from_hub
from hybrid_ft.finetune.data.sources.source import files_read, folder_of
from hybrid_ft.finetune.recipe.shipped import COLUMNS, digest_of_code
from hybrid_ft.hybrid_model.checkpoint.new_tokens import tokens_of_text

if TYPE_CHECKING:
    from hybrid_ft.finetune.data.tokens.encoder import Encoder
    from hybrid_ft.finetune.recipe.data_section import Source
    from hybrid_ft.finetune.recipe.schema import Recipe

_LIBRARIES = ("tokenizers", "transformers", "jinja2", "datasets", "pyarrow")
_CODE = ("finetune/data", "finetune/recipe", "errors.py")
_OF_THE_MIX = {"weight", "count", "repeat"}
"""Keys of a source that choose among its rows when they are tokens."""

State = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class SourceKey:
    """A source's ``parts``, all that its tokens depend on.

    ``state``: of the files when they were read for the key: path, bytes, time of change in ns, inode.
    """

    parts: dict[str, Any]
    state: State

    @property
    def name(self) -> str:
        """A name for the tokens."""
        text = json.dumps(self.parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def still_holds(self) -> bool:
        """Whether the files are as they were."""
        return self.state == _state([file for file, *_ in self.state])


def recipe_parts(recipe: Recipe, encoder: Encoder) -> dict[str, Any]:
    """What the tokens of all of a recipe's sources depend on."""
    data, template, tokenizer = recipe.data, encoder.template, encoder.tokenizer
    words = f"{tokenizer.backend_tokenizer.to_str()}\n{json.dumps(tokenizer.special_tokens_map, default=str)}"
    return {
        "stage": recipe.stage,
        "max_length": data.max_length,
        "on_long_row": data.on_long_row,
        "on_bad_row": data.on_bad_row,
        "on_long_prompt": recipe.preference and recipe.preference.on_long_prompt,
        "batch_tokens": recipe.train.batch_tokens if recipe.of_pairs else None,
        "reasoning": data.reasoning,
        "train_empty_thoughts": data.train_empty_thoughts,
        "plain_text_unsaid": recipe.model.chat_template is None,
        "words": sorted(tokens_of_text(tokenizer)),
        "chat_template": [template.name, template.text, template.arguments],
        # such a template writes the date
        "today": _today() if "strftime_now" in template.text else None,
        "tokenizer": hashlib.sha256(words.encode()).hexdigest(),
        "code": _code(),
        "versions": {name: version(name) for name in _LIBRARIES} | {"python": sys.version_info[:2]},
    }


def file_sizes(source: Source) -> list[tuple[str, int]]:
    """The files that a source reads, and their bytes; none for a dataset of the hub, or where that cannot be told."""
    try:
        folder = folder_of(source)
        return [] if folder is None else [one[:2] for one in _state(files_read(source, folder))]
    except (InputError, OSError):
        return []


def source_key(source: Source, parts: dict[str, Any], columns: Sequence[str]) -> SourceKey | None:
    """The key of a source, with the ``parts`` of its recipe and the ``columns`` that are wanted.

    None where it cannot be told; whoever then reads the source says why. The files are read whole: their sizes and
    times would not do, since a file may change within one tick of its disk's clock, or be put back with an old time.
    """
    own = source.model_dump(exclude=_OF_THE_MIX)
    try:
        folder = folder_of(source)
        if folder is None:
            rows = load_from_hub(source, source.path)
            return SourceKey(
                parts | {"source": own, "columns": list(columns), "hub": [rows._fingerprint, len(rows)]}, ()
            )
        files = files_read(source, folder)
        mapping = _mapping(source)
        state = _state([*files, *mapping])
        digests = [_digest(file) for file in (*files, *mapping)]
    except (InputError, OSError):
        return None
    lies = {"splits": folder.splits, "notes": folder.notes, "files": files, "sha256": digests}
    return SourceKey(parts | {"source": own, "columns": list(columns), "lies": lies}, state)


def _today() -> str:
    return datetime.datetime.now(tz=None).date().isoformat()


def _mapping(source: Source) -> list[str]:
    """The file of a column mapping, where there is one."""
    name = source.columns and source.columns.file
    if not name:
        return []
    shipped = COLUMNS / f"{name}.yaml"
    return [str(shipped if shipped.is_file() else name)]


def _state(files: Sequence[str]) -> State:
    found = []
    for file in files:
        try:
            known = os.stat(file)
        except OSError:
            continue
        found.append((file, known.st_size, known.st_mtime_ns, known.st_ino))
    return tuple(found)


def _digest(file: str) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@cache
def _code() -> str:
    """Of what makes rows into tokens."""
    return digest_of_code(_CODE)
