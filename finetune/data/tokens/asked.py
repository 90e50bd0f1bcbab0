"""What a chat template adds to ask for an answer.

Asked by plain transformers, a model gets the turns so far and the beginning of the assistant's. A row teaches what
comes after that only if it begins with the very same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.skeleton import Skeleton

MOST_KINDS = 4096

Messages = list[dict[str, Any]]


@dataclass
class Openings:
    """What asking for an answer adds behind the assistant's header, ``<think>`` say, by the kinds of
    the turns around it.

    ``asks``: messages and tools -> the text that asks for the next answer; raises BadRow. It is called once for
    conversations whose turns are of the same kinds in the same order.
    """

    asks: Callable[[Messages, Any], str]
    _known: dict[Hashable, str | None] = field(default_factory=dict)

    def before(self, skeleton: Skeleton, index: int, header: str, rest: str) -> str | None:
        """What is added for the turn ``index``, or None where the template asks after other text than the row's.

        ``header``: the rendered skeleton up to where the turn begins; ``rest``: what follows. Empty also for a turn
        that nobody asks for: one that begins a conversation, or follows another answer.
        """
        messages = skeleton.messages
        if not index or messages[index - 1]["role"] == "assistant":
            return ""
        key = _kinds(skeleton, index)
        if key not in self._known:
            if len(self._known) >= MOST_KINDS:
                self._known.clear()
            self._known[key] = self._found(skeleton, index, header, rest)
        return self._known[key]

    def _found(self, skeleton: Skeleton, index: int, header: str, rest: str) -> str | None:
        try:
            asked = self.asks(skeleton.messages[:index], skeleton.tools)
        except BadRow:
            return None
        if asked.startswith(header):
            return asked[len(header) :]
        return "" if (header + rest).startswith(asked) else None


def _kinds(skeleton: Skeleton, index: int) -> Hashable:
    """Equal where a template, as they are written, asks in the same way: which kinds of turns follow which."""
    before = [_kind(message) for message in skeleton.messages[:index]]
    last = max((at for at, kind in enumerate(before) if kind[0] == "user"), default=-1)
    after = [_kind(message) for message in skeleton.messages[index:]]
    rounds = [frozenset(zip([None, *part], part, strict=False)) for part in (before[:last], before[last:], after)]
    return (*rounds, before[0], before[-1], after[0], len(before) == 1, bool(skeleton.tools))


def _kind(message: dict[str, Any]) -> tuple[Any, ...]:
    content = message["content"]
    return message["role"], bool(content.strip()), "</think>" in content, frozenset(message)
