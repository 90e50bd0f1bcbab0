"""A recipe's sources in tokens: those that are kept, and those made now."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ft.finetune.data.drawn_rows import drawn
from hybrid_ft.finetune.data.encoding_workers import EncodingWorkers
from hybrid_ft.finetune.data.kept_tokens import KeptTokens
from hybrid_ft.finetune.data.preparing import Preparing
from hybrid_ft.finetune.data.token_key import file_sizes, recipe_parts, source_key
from hybrid_ft.finetune.data.token_store import SourceTokens, TokenStore, file_schema, room_for, tokenize_source
from hybrid_ft.finetune.data.way import Way

if TYPE_CHECKING:
    from hybrid_ft.finetune.data.tokens.encoder import Encoder
    from hybrid_ft.finetune.recipe.data_section import Source
    from hybrid_ft.finetune.recipe.schema import Recipe

VARIABLE = "HYBRID_FT_CACHE"
"""The environment's name for the folder of kept tokens, where a recipe names none."""
WORTH_KEEPING = 2**20
"""Bytes of a source's files that are kept where nobody has named a folder: fewer are prepared in a second."""


class SourcesInTokens:
    """Makes tokens of sources by a recipe, or finds them kept. ``folder``: for what is not kept."""

    def __init__(self, recipe: Recipe, encoder: Encoder, way: Way[Any, Any], folder: Path) -> None:
        self._recipe, self._encoder, self._way, self._folder = recipe, encoder, way, folder
        self._screen = Preparing()
        place = cache_folder(recipe)
        self._kept = None if place is None else KeptTokens(place, self._screen.say)
        self._parts: dict[str, Any] | None = None

    def store(self, sources: Sequence[Source], name: str, held_out: bool) -> TokenStore:
        """The tokens of ``sources``. ``name``: of their files; ``held_out``: as ``file_schema``.

        Raises InputError for a row that stops the run: the first one, with how many there are.
        """
        schema = file_schema(self._way, held_out)
        with room_for(self._folder), EncodingWorkers(self._way, schema) as workers:

            def tokens(number: int, source: Source) -> SourceTokens:
                sizes = file_sizes(source)
                watched = partial(self._screen.watched, files=sizes)
                elsewhere = self._folder / f"{name}-{number}.arrow"
                draw = drawn(source, self._way, sizes, self._recipe.data.seed, number)

                def make(file: Path) -> SourceTokens:
                    return tokenize_source(source, file, self._way, schema, workers, watched, draw)

                key = None
                if self._kept is not None and self._worth_keeping(sizes):
                    self._parts = self._parts or (
                        recipe_parts(self._recipe, self._encoder) | {"decides": self._way.decides}
                    )
                    parts = self._parts if draw is None else self._parts | {"draw": asdict(draw)}
                    key = source_key(source, parts, schema.names)
                return make(elsewhere) if self._kept is None or key is None else self._kept.get(key, make, elsewhere)

            return TokenStore([tokens(number, source) for number, source in enumerate(sources)])

    def _worth_keeping(self, sizes: Sequence[tuple[str, int]]) -> bool:
        return bool(self._recipe.data.cache) or not sizes or sum(size for _, size in sizes) >= WORTH_KEEPING


def cache_folder(recipe: Recipe) -> Path | None:
    """Where a recipe's tokens are kept: where it says, else the environment, else beside the run's folder."""
    if recipe.data.cache is False:
        return None
    if place := recipe.data.cache or os.environ.get(VARIABLE):
        return Path(place).expanduser()
    return Path(recipe.output).parent / ".tokens" if recipe.output else None
