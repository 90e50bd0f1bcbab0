"""Where a prompt ends and an answer begins, in characters and in tokens.

A row's tokens up to there must be those that ask for the answer. A tokenizer may join the prompt's last characters and
the answer's first in one token, line ends mostly, after which a model is never asked. There the row is encoded in two
parts."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.filled import Filled
from hybrid_ft.finetune.data.tokens.template import Span

if TYPE_CHECKING:
    from hybrid_ft.finetune.data.tokens.parts import Tokenized

SPLIT_LINE_ENDS, SPLIT_MERGES = "line_ends_split_from_header", "merges_split_from_prompt"
NOT_ASKED_THOUGHT, NOT_ASKED_TURNS, NOT_ASKED_MERGE = "not_asked_opening", "not_asked_turns", "not_asked_merge"
"""How a row's tokens differ from those that ask: mended, and not. The keys under which rows are counted."""

_LINE_ENDS = re.compile(r"\s*\n")
_EMPTY_THOUGHT = re.compile(
    r"""\s*(?:<(think|thinking|thought|reasoning|seed:think)>\s*</\1>
    |\[THINK\]\s*\[/THINK\]|<\|START_THINKING\|>\s*<\|END_THINKING\|>|<\|channel>thought\s*<channel\|>)\s*""",
    re.VERBOSE,
)


@dataclass(slots=True)
class Border:
    """Where one answer begins, in characters of the marked row (``text_at`` and ``text_end``: of the plain one).

    ``start``: behind the assistant's header; ``at``: behind what asks for the answer, ``opening`` (marked), where the
    row has that too; ``learned``: from where on the row is learned; ``end``: of the token that ends the turn. ``tail``:
    what stands before ``start`` from the template's last control token on, which is at ``tail_from``. ``cause``: why
    the row does not go on from what is asked. ``first``: the answer's first token, once it is known.
    """

    start: int
    at: int
    learned: int
    end: int
    text_start: int
    text_at: int
    text_end: int
    text_before: int
    opening: str
    tail: str
    tail_from: int
    cause: str | None
    first: int | None = None

    @property
    def row_tail(self) -> str:
        """What the row has from its last control token to the answer, if it goes on from what is asked."""
        return self.tail if self.cause else self.tail + self.opening


def border_of(span: Span, filled: Filled, control: ControlTokens) -> Border:
    """The border of one turn in one row."""
    begin, start = filled.at(span.start)
    text_end, end = filled.at(span.end)
    opening, cause, text_at, at = span.opening or "", None, begin, start
    if span.opening is None:
        cause = NOT_ASKED_TURNS
    elif opening and not filled.text.startswith(opening, begin):
        cause = NOT_ASKED_THOUGHT
    elif opening:
        text_at = begin + len(opening)
        at = filled.marked_at(text_at, control)
    if span.tail is None:
        tail_from = _last_control(filled, span.start.literal, control)
        tail = filled.marked[tail_from:start]
    else:
        tail, offset = span.tail
        tail_from = filled.marked_starts[2 * span.start.literal] + offset
    text_before = (
        filled.starts[2 * span.start.literal + 1] if 2 * span.start.literal + 1 < len(filled.starts) else begin
    )
    return Border(
        start, at, at, end, begin, text_at, text_end, text_before, control.mark(opening), tail, tail_from, cause
    )


def _last_control(filled: Filled, literal: int, control: ControlTokens) -> int:
    """Where the template's last control token before a literal begins, in the marked row; 0 where there is none."""
    for index in range(literal - 1, -1, -1):
        if found := control.found_in(filled.plan.literals[index]):
            return filled.marked_starts[2 * index] + len(control.mark(filled.plan.literals[index][: found[-1].start()]))
    return 0


def empty_thought(border: Border, filled: Filled, control: ControlTokens) -> int | None:
    """The end of a thought without text that the template itself puts before the answer, in the marked row.

    None where there is none, and where it is a part of what asks for the answer.
    """
    match = _EMPTY_THOUGHT.match(filled.text, border.text_start)
    if not match or not border.text_at < match.end() <= border.text_before:
        return None
    return filled.marked_at(match.end(), control)


class Laid:
    """A marked row in tokens, encoded in one part or in several; a part's first character is at ``_froms`` of it.

    ``tokens``: their ids, int32 [tokens].
    """

    def __init__(self, froms: list[int], encodings: Sequence[Tokenized]) -> None:
        self._froms, self._encodings = froms, encodings
        self._tokens = [0, *accumulate(len(encoding.tokens) for encoding in encodings[:-1])]
        self.tokens = encodings[0].tokens if len(encodings) == 1 else np.concatenate([one.tokens for one in encodings])

    def at(self, position: int) -> int:
        """The token that holds a character."""
        part = bisect_right(self._froms, position) - 1
        token = self._encodings[part].char_to_token(position - self._froms[part])
        assert token is not None, "a control token is a token"
        return self._tokens[part] + token

    def end_of(self, token: int) -> int | None:
        """Where a token's characters end; None for one without."""
        part = bisect_right(self._tokens, token) - 1
        chars = self._encodings[part].token_to_chars(token - self._tokens[part])
        return None if chars is None else self._froms[part] + chars[1]

    def first(self, border: Border) -> int:
        """The first token to learn: all of its characters belong to what is learned."""
        if border.learned == border.at and border.first is not None:
            return border.first
        part = bisect_right(self._froms, border.learned) - 1
        encoding, before = self._encodings[part], self._froms[part]
        # A token that holds characters of both sides is not trained: the model is never asked after half of it.
        for position in range(border.learned - before, border.end - before + 1):
            token = encoding.char_to_token(position)
            if token is None:
                continue  # the tokenizer drops some white space
            chars = encoding.token_to_chars(token)
            assert chars is not None
            return self._tokens[part] + (token + 1 if chars[0] < border.learned - before else token)
        raise AssertionError("the end token is a token")

    def tail_at(self, border: Border) -> int:
        """The first token of a border's tail."""
        return self.at(border.tail_from) if border.tail_from else 0

    def goes_on(self, border: Border, control: ControlTokens) -> bool:
        """Whether the tokens before an answer are those that come of asking; notes its first one then."""
        tail, begin = control.ids_of(border.row_tail), self.tail_at(border)
        if self.tokens[begin : begin + len(tail)].tolist() != tail:
            return False
        border.first = begin + len(tail)
        return True

    def asked(self, border: Border, control: ControlTokens) -> tuple[list[int], int]:
        """What a model is asked with, and how many tokens of that the row has, too, behind the header."""
        begin, tail = self.tail_at(border), control.ids_of(border.tail)
        whole = control.ids_of(border.tail + border.opening)
        opened = len(whole) - len(tail) if not border.cause and whole[: len(tail)] == tail else 0
        return self.tokens[:begin].tolist() + whole, opened


def continued(
    marked: str, borders: list[Border], encoding: Tokenized, control: ControlTokens
) -> tuple[Laid, list[str]]:
    """A row whose last answer begins where the prompt that asks for it ends, as far as that can be; and
    what was not so.

    Answers before it are not encoded apart: in a later prompt they stand as the tokenizer joins them.
    """
    laid = Laid([0], [encoding])
    causes = [border.cause for border in borders if border.cause]
    joined = [border for border in borders if not laid.goes_on(border, control)]
    if joined and joined[-1] is (last := borders[-1]):
        before = marked[: last.start] + ("" if last.cause else last.opening)
        parts = Laid([0, last.at], control.encode([before, marked[last.at :]]))
        # a tokenizer that puts a space before a text's first word makes another text of two parts
        if control.text(parts.tokens.tolist()) == control.text(laid.tokens.tolist()) and parts.goes_on(last, control):
            laid = parts
            joined.pop()
            causes.append(SPLIT_LINE_ENDS if _LINE_ENDS.match(marked, last.at) else SPLIT_MERGES)
    return laid, causes + [NOT_ASKED_MERGE] * len(joined)
