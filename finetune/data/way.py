"""The way of one kind of row from a source into the token store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources.rows import BadRow

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source

TOKENS = pa.list_(pa.int32())
WEIGHTS = pa.list_(pa.float32())

Reason = BadRow | Unusable
"""Why a row is not trained on."""


class Item(Protocol):
    """A converted row. ``noticed``: what reading it came upon, by the account's NOTES."""

    noticed: dict[str, int]

    def asked(self) -> str:
        """Equal for rows that ask the same first: such rows must stay in one split."""
        ...

    def whole(self) -> str:
        """Equal for rows that are the same."""
        ...

    def opposite(self) -> str | None:
        """Equal to ``whole`` of the row that says the contrary; None where none can."""
        ...

    def fields(self) -> set[str]:
        """Message fields, and arguments of the row's, that only some chat templates look at."""
        ...


class Encoding(Protocol):
    """An encoded row. ``control_tokens_as_text``: control tokens that stood in its texts and were encoded as text."""

    control_tokens_as_text: tuple[str, ...]

    def columns(self) -> dict[str, Any]:
        """The row for the store's file, its origin apart."""
        ...

    def sizes(self) -> dict[str, int]:
        """The numbers that are kept in memory."""
        ...


Made = TypeVar("Made", bound=Item)
Tokens = TypeVar("Tokens", bound=Encoding)


class Convert(Protocol):
    """Reads a source's rows, each with its origin; a bad one comes as the reason."""

    def __call__(
        self, source: Source, counts: SourceCounts, wanted: np.ndarray | None = None
    ) -> Iterator[tuple[str, Any]]:
        """``wanted`` [rows]: the only rows that are read, counted from 0 and in order; None: all."""
        ...


def _never(_: Source) -> bool:
    return False


@dataclass(frozen=True)
class Way(Generic[Made, Tokens]):
    """The way of one kind of row into the store.

    ``encode`` gives tokens or a
    reason for each row, fewer where a template had to be stopped. ``fit`` gives the tokens as they are trained on, or
    the pieces in which they are, and what happened to them (kind -> count, of the account's NOTES), and raises the
    reason where there are none. ``stops``: the kinds of rows that end the run, and the fix; ``bad_rows_stop``: every
    BadRow does. ``mentions``: whether the chat template writes a message field. ``schema``: the file's columns, all of
    which held-out rows need; ``trained_columns``: those that training needs.
    """

    convert: Convert
    encode: Callable[[list[Made]], Sequence[Tokens | Reason]]
    fit: Callable[[Tokens], tuple[Tokens | Sequence[Tokens], Mapping[str, int]]]
    stops: Mapping[str, str]
    bad_rows_stop: bool
    mentions: Callable[[str], bool]
    schema: pa.Schema
    trained_columns: tuple[str, ...]
    sift: Callable[[Iterator[tuple[str, Made | Reason]]], Iterator[tuple[str, Made | Reason]]] = iter
    """Of rows to train on, turns those that must not be into the reason."""
    decides: str = ""
    """What else decides which rows it makes, beside the recipe and the source's files."""
    one_each: Callable[[Source], bool] = _never
    """Whether each row of a source becomes one that is trained on, or none, so that some may be drawn before any is
    read."""
