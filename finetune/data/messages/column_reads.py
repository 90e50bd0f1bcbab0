"""What a column mapping reads of a row: its paths, and its templates parsed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybrid_ft.errors import InputError, did_you_mean
from hybrid_ft.finetune.data.messages.calls import tool_calls_from
from hybrid_ft.finetune.data.messages.column_paths import MISSING, found_at
from hybrid_ft.finetune.data.messages.column_templates import ColumnTemplate, condition, is_template
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.recipe.data_section import Columns, Turn


class Reads:
    """What a mapping reads, its templates parsed. Raises ValueError for a template that is not one."""

    def __init__(self, columns: Columns) -> None:
        self.templates: dict[str, ColumnTemplate] = {}
        self.paths: dict[str, str] = {}
        for ours, theirs in columns.named().items():
            if is_template(theirs):
                self.templates[ours] = ColumnTemplate(theirs)
            else:
                self.paths[ours] = theirs
        self.turns = [TurnTemplates(turn) for turn in columns.messages or ()]
        texts = [*self.templates.values(), *(text for turn in self.turns for text in turn.all())]
        self.optional = {name for text in texts for name in text.optional}
        self.optional |= {name for turn in self.turns if turn.when for name in turn.when.columns}
        paths = [*self.paths.values(), *(turn.calls for turn in self.turns if turn.calls)]
        self.columns = {name for text in texts for name in text.columns} | {path.split(".")[0] for path in paths}
        self.whole = set(paths)

    def check(self, name: str, have: set[str]) -> None:
        """Raise InputError for a column that the source does not have."""
        named = {path for path in self.whole if path in have}
        heads = {path.split(".")[0] for path in named}
        missing = sorted(self.columns - self.optional - have - heads)
        if missing:
            found = ", ".join(sorted(have)) or "none"
            raise InputError(f"{name}: no column {missing[0]}{did_you_mean(missing[0], have)} (found {found})")


class TurnTemplates:
    """One message of a mapping."""

    def __init__(self, turn: Turn) -> None:
        self.role, self.calls = turn.role, turn.tool_calls
        self.content = ColumnTemplate(turn.content) if turn.content is not None else None
        self.reasoning = ColumnTemplate(turn.reasoning) if turn.reasoning is not None else None
        self.when = condition(turn.when) if turn.when is not None else None

    def all(self) -> list[ColumnTemplate]:
        return [text for text in (self.content, self.reasoning, self.when) if text is not None]

    def message(self, values: Mapping[str, Any], at: str) -> dict[str, Any] | None:
        """The message for a row; None where it is left out."""
        if self.when is not None and not self.when(values):
            return None
        message: dict[str, Any] = {"role": self.role, "content": self.content(values) if self.content else ""}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning(values)
        if self.calls is not None:
            calls = found_at(values, self.calls)
            if calls is MISSING or calls is None:
                found = "missing" if calls is MISSING else "null"
                raise BadRow("column missing", f"column {self.calls} is {found}; {at} needs it")
            message["tool_calls"] = tool_calls_from(calls, self.calls)
        return message
