"""Texts for continued pretraining, of which every token is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hybrid_ft.finetune.data.messages.noticed import CHATS_AS_TEXT
from hybrid_ft.finetune.data.messages.transcripts import looks_like_chat
from hybrid_ft.finetune.data.messages.turns import text_from
from hybrid_ft.finetune.data.sources.rows import BadRow

_ABOUT = frozenset(
    [
        "id",
        "_id",
        "idx",
        "index",
        "url",
        "source",
        "title",
        "meta",
        "metadata",
        "date",
        "timestamp",
        "created",
        "added",
        "lang",
        "language",
        "language_score",
        "token_count",
        "file_path",
        "dump",
        "license",
        "version",
        "subset",
        "domain",
    ]
)
"""Columns that say something about a text and are none themselves."""


@dataclass(slots=True)
class PlainText:
    """One document. ``unused``: fields that were left out, of which a text has none; ``noticed``:
    what reading came upon."""

    text: str
    unused: set[str] = field(default_factory=set)
    noticed: dict[str, int] = field(default_factory=dict)

    def asked(self) -> str:
        """Equal for texts that must stay in one split: the same ones."""
        return self.text

    def whole(self) -> str:
        """Equal for texts that are the same."""
        return self.text

    def opposite(self) -> None:
        """No text says the contrary of another."""

    def fields(self) -> set[str]:
        """A text has no message fields."""
        return set()


def is_plain(columns: Iterable[str]) -> bool:
    """Whether columns are a text, and else only what is said about texts."""
    rest = set(columns) - {"text"}
    return "text" in columns and rest <= _ABOUT


def plain_text(values: Mapping[str, Any]) -> PlainText:
    """The text of a row. Raises BadRow."""
    if "text" not in values:
        found = ", ".join(map(str, list(values)[:8])) or "none"
        raise BadRow("column missing", f"column text is missing (found {found})")
    text = text_from(values["text"], "text")
    if not text.strip():
        raise BadRow("empty text", "text: the text is empty; drop the row")
    return PlainText(text, noticed={CHATS_AS_TEXT: 1} if looks_like_chat(text) else {})
