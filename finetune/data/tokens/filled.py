"""A plan filled with a row's texts, equal to the rendered row."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.skeleton import Skeleton
from hybrid_ft.finetune.data.tokens.template import ChatTemplate, Place, Plan, escaped

_PLAIN = ("role", "content")


@dataclass(slots=True)
class Filled:
    """A row's ``text`` as the template writes it, and ``marked``: the same, the template's control tokens renamed.

    ``starts`` and ``marked_starts``: where literals and texts begin in the two, in turn.
    """

    plan: Plan
    text: str
    marked: str
    starts: list[int]
    marked_starts: list[int]

    def at(self, place: Place) -> tuple[int, int]:
        """A position of the plan in ``text`` and in ``marked``."""
        return self.starts[2 * place.literal] + place.plain, self.marked_starts[2 * place.literal] + place.marked

    def marked_at(self, position: int, control: ControlTokens) -> int:
        """A position of ``text`` in ``marked``."""
        piece = bisect_right(self.starts, position) - 1
        inside = position - self.starts[piece]
        if piece % 2 == 0:
            inside = len(control.mark(self.plan.literals[piece // 2][:inside]))
        return self.marked_starts[piece] + inside


def filled_text(
    skeleton: Skeleton, messages: list[dict[str, Any]], tools: Any, template: ChatTemplate, *, ask: bool = False
) -> Filled:
    """The plan of a skeleton with its texts. ``messages`` and ``tools``: as they are rendered; ``ask``: as in ``plan``.

    Turns of nothing but text are rendered only where the template may look at one.

    Raises BadRow where the two are not the same, letter by letter.
    """
    plan = None
    if tools is None and all(tuple(message) == _PLAIN for message in messages):
        plan = template.unread_plan(skeleton, ask=ask)
    if plan is not None:
        pieces = _pieces(plan, skeleton)
        text = "".join(pieces)
    else:
        text = template.render(messages, tools, ask=ask)
        plan = template.plan(skeleton, ask=ask)
        pieces = _pieces(plan, skeleton)
        if "".join(pieces) != text:
            template.forget(skeleton, ask=ask)
            plan = template.plan(skeleton, ask=ask)
            pieces = _pieces(plan, skeleton)
            if "".join(pieces) != text:
                reason = f"chat template {template.name} changes this row's text as it writes it"
                raise BadRow("chat template", f"{reason}; which tokens are the answer's cannot be told")
    marked = list(pieces)
    marked[::2] = plan.marked
    return Filled(plan, text, "".join(marked), _starts(pieces), _starts(marked))


def _pieces(plan: Plan, skeleton: Skeleton) -> list[str]:
    """Literals and texts in turn, the literals as the template wrote them."""
    pieces = [plan.literals[0]]
    for (number, times), literal in zip(plan.slots, plan.literals[1:], strict=True):
        pieces.append(escaped(skeleton.slots[number].text, times))
        pieces.append(literal)
    return pieces


def _starts(pieces: list[str]) -> list[int]:
    starts, at = [], 0
    for piece in pieces:
        starts.append(at)
        at += len(piece)
    return starts
