"""A preference: a prompt, its preferred answer and the other one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from hybrid_ft.errors import short, shown
from hybrid_ft.finetune.data.messages.calls import settled
from hybrid_ft.finetune.data.messages.conversation import Conversation, checked
from hybrid_ft.finetune.data.sources.rows import BadRow

Messages = list[dict[str, Any]]


MARGIN = "margin"
"""The column of what ``margin_from`` reads, as in TRL."""
MOST_MARGIN = 1e6


def margin_from(value: Any) -> float:
    """A row's margin; 0 where it says nothing. Raises BadRow."""
    if value is None or value == "":
        return 0.0
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= MOST_MARGIN:
        raise BadRow("margin", f"{MARGIN} is {shown(value)}; must be a number, by how much chosen is to be better")
    return number


class Unusable(Exception):
    """A pair that is well written and teaches nothing. Such rows are left out and counted, whatever data.on_bad_row.

    ``kind`` is the short reason under which they are counted; the text says which side and why. ``line``, ``which`` and
    ``file`` are set where that is known before there is a pair.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.line = 0
        self.which = self.file = ""

    def __reduce__(self) -> Any:
        """Whole from one process to another, as a BadRow."""
        return type(self), (self.kind, str(self)), {"line": self.line, "which": self.which, "file": self.file}


@dataclass(slots=True)
class Preference:
    """``prompt`` is every message before the answer; ``chosen`` and ``rejected`` are one assistant message each.

    ``noticed`` is as in Conversation, the prompt counted once; ``margin``: by how much chosen is to be better,
    for a reward model.
    """

    prompt: Messages
    chosen: dict[str, Any]
    rejected: dict[str, Any]
    tools: list[dict[str, Any]] | None = None
    unused: set[str] = field(default_factory=set)
    noticed: dict[str, int] = field(default_factory=dict)
    template_arguments: dict[str, Any] = field(default_factory=dict)
    margin: float = 0.0

    def sides(self) -> Iterator[Conversation]:
        """The two conversations as a supervised row has them: chosen, then rejected."""
        for answer in (self.chosen, self.rejected):
            yield Conversation([*self.prompt, answer], self.tools, template_arguments=self.template_arguments)

    def asked(self) -> str:
        """Equal for pairs that ask the same first."""
        return next(self.sides()).asked()

    def whole(self) -> str:
        """Equal for pairs that are the same."""
        parts = [self.prompt, self.chosen, self.rejected, self.tools, self.template_arguments]
        return json.dumps(parts, sort_keys=True)

    def opposite(self) -> str:
        """Equal to ``whole`` of the pair that prefers the other answer."""
        return replace(self, chosen=self.rejected, rejected=self.chosen).whole()

    def fields(self) -> set[str]:
        """Message fields that only some chat templates write."""
        return {field for side in self.sides() for field in side.fields()}


def preference_from(
    chosen: Messages, rejected: Messages, tools: list[dict[str, Any]] | None, unused: set[str]
) -> Preference:
    """What two whole conversations share, and the two answers. Raises Unusable.

    They may differ in the last turn only, which is the assistant's: a pair's prompt is computed once, and only
    answers carry loss, so a user's or a tool's turn must not lie behind the point where the sides part.
    """
    shared = settled(chosen[:-1], tools)[2]
    chosen, settled_tools, of_chosen = settled(chosen, tools)
    rejected, _, of_rejected = settled(rejected, tools)
    both = of_chosen | of_rejected
    noticed = {kind: of_chosen.get(kind, 0) + of_rejected.get(kind, 0) - shared.get(kind, 0) for kind in both}
    tools = settled_tools
    for side, messages in (("chosen", chosen), ("rejected", rejected)):
        try:
            checked(Conversation(messages, tools), side)
        except BadRow as bad:
            raise Unusable(bad.kind, str(bad)) from None
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("no shared prompt", _parting(chosen, rejected))
    if len(chosen) == 1:
        raise Unusable("no shared prompt", "chosen and rejected are answers alone; nothing says what they answer")
    if chosen[-1] == rejected[-1]:
        raise Unusable("identical answers", f"chosen and rejected are the same ({short(repr(chosen[-1]['content']))})")
    return Preference(chosen[:-1], chosen[-1], rejected[-1], tools, unused, noticed)


def _parting(chosen: Messages, rejected: Messages) -> str:
    """Where two conversations part that do not differ in the last answer alone."""
    same = next(
        (index for index, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1]),
        min(len(chosen), len(rejected)),
    )
    turns = f"chosen has {len(chosen)} turns, rejected {len(rejected)}"
    if same == 0:
        return f"chosen and rejected differ from their first turn on ({turns})"
    return f"chosen and rejected part at turn {same + 1}, before the last answer ({turns})"
