"""Conversations to tokens, and which of the tokens are learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.training_marks import Weights
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.borders import Border, border_of, continued, empty_thought
from hybrid_ft.finetune.data.tokens.calls_as_text import CALLS_AS_TEXT, calls_as_text
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.filled import filled_text
from hybrid_ft.finetune.data.tokens.reasoning import AS_GIVEN, HIDDEN, Thoughts, placed
from hybrid_ft.finetune.data.tokens.skeleton import as_rendered
from hybrid_ft.finetune.data.tokens.template import RUNAWAY, ChatTemplate
from hybrid_ft.finetune.data.tokens.weights import check_unmoved, placed_weights, token_weights

if TYPE_CHECKING:
    from hybrid_ft.finetune.data.tokens.parts import Tokenized

UNTRAINED, CUT = "turns_not_trained_by_flag", "cut"
EMPTY_TRAINED, EMPTY_UNTRAINED = "empty_thoughts_trained", "empty_thoughts_not_trained"
"""What happens to rows that are kept: the keys under which it is counted."""
OF_TURNS = frozenset({UNTRAINED, EMPTY_TRAINED, EMPTY_UNTRAINED})
"""Those that are counted in turns, not in rows."""


@dataclass(slots=True)
class Encoded:
    """A row in tokens.

    ``tokens``: their ids, int32 [tokens]. ``turns``: [first, last] of the tokens of each assistant turn that is
    trained, the token that ends it included. ``prompt_ids`` and ``answer``: what a model is asked with for the last of
    them, and the text of that turn that comes after it. ``opened``: how many tokens of ``prompt_ids`` are what asking
    adds behind the assistant's header, if the row has them too. ``control_tokens_as_text``: control tokens that stood
    in the row's texts and were encoded as text. ``counts``: what a user should know of, by the account's kinds, and how
    often. ``weights``: of each token in the loss; None where all are 1."""

    tokens: np.ndarray
    turns: list[tuple[int, int]]
    prompt_ids: list[int]
    answer: str
    control_tokens_as_text: tuple[str, ...]
    opened: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    weights: list[float] | None = None

    @property
    def ids(self) -> list[int]:
        """The tokens as a list."""
        found: list[int] = self.tokens.tolist()
        return found

    def labels(self) -> list[int]:
        """The ids where they are learned, -100 elsewhere."""
        found: list[int] = self._labels().tolist()
        return found

    def _labels(self) -> np.ndarray:
        labels = np.full(len(self.tokens), -100, np.int32)
        for first, last in self.turns:
            labels[first : last + 1] = self.tokens[first : last + 1]
        if self.weights is not None:
            labels[np.array(self.weights) == 0] = -100
        return labels

    def columns(self) -> dict[str, Any]:
        """The row for the file of tokens, its origin apart."""
        return {
            "input_ids": self.tokens,
            "labels": self._labels(),
            "weights": self.weights or [],
            "prompt_ids": self.prompt_ids,
            "answer": self.answer,
        }

    def sizes(self) -> dict[str, int]:
        """Tokens of the row, and how many of them are trained."""
        if self.weights is not None:
            return {"length": len(self.tokens), "trained": int(np.count_nonzero(self._labels() != -100))}
        return {"length": len(self.tokens), "trained": sum(last - first + 1 for first, last in self.turns)}

    def happened(self) -> dict[str, int]:
        """What a user should know of, with how often: in rows, but for OF_TURNS."""
        return {kind: count if kind in OF_TURNS else bool(count) for kind, count in self.counts.items()}


@dataclass(slots=True)
class _Filled:
    """A plan with a conversation's texts in it. ``borders``: of each turn that is trained."""

    marked: str
    borders: list[Border]
    controls: int
    answer: str
    control_tokens_as_text: tuple[str, ...]
    counts: dict[str, int]
    weights: list[Weights] | None


def encode(
    conversations: list[Conversation], template: ChatTemplate, control: ControlTokens, thoughts: Thoughts = AS_GIVEN
) -> list[Encoded | BadRow]:
    """Encode conversations; a row that cannot be encoded with certainty comes back as the BadRow that says why.

    A row on which the template had to be stopped is the last that comes back: the next might take as long.
    """
    filled: list[_Filled | BadRow] = []
    for conversation in conversations:
        row = _filled_or_bad(conversation, template, control, thoughts)
        filled.append(row)
        if isinstance(row, BadRow) and row.kind == RUNAWAY:
            break
    encodings = iter(control.encode([row.marked for row in filled if isinstance(row, _Filled)]))
    rows: list[Encoded | BadRow] = []
    for row in filled:
        if isinstance(row, BadRow):
            rows.append(row)
            continue
        try:
            rows.append(_encoded(row, next(encodings), control))
        except BadRow as bad:
            rows.append(bad)
    return rows


def encode_prompt(
    conversation: Conversation, template: ChatTemplate, control: ControlTokens, thoughts: Thoughts = AS_GIVEN
) -> list[int]:
    """A conversation that waits for an answer, up to where that begins. Raises BadRow."""
    template = template.variant(conversation.template_arguments)
    moved = placed(conversation, thoughts, template.habits)
    skeleton = template.skeleton(moved.conversation, tags=moved.tags)
    messages = as_rendered(moved.conversation, template.habits.field)
    filled = filled_text(skeleton, messages, conversation.tools, template, ask=True)
    (encoding,) = control.encode([filled.marked])
    _check_controls(encoding.tokens, filled.plan.controls, control)
    return encoding.ids


def _filled_or_bad(
    conversation: Conversation, template: ChatTemplate, control: ControlTokens, thoughts: Thoughts
) -> _Filled | BadRow:
    try:
        return _filled(conversation, template, control, thoughts)
    except BadRow as bad:
        return bad


def _filled(conversation: Conversation, template: ChatTemplate, control: ControlTokens, thoughts: Thoughts) -> _Filled:
    template = template.variant(conversation.template_arguments)
    moved = placed(conversation, thoughts, template.habits)
    skeleton = template.skeleton(moved.conversation, tags=moved.tags)
    messages = as_rendered(moved.conversation, template.habits.field)
    filled = filled_text(skeleton, messages, conversation.tools, template)
    plan, counts = filled.plan, moved.happened
    untrained = conversation.untrained
    learned = [span for span in plan.spans if span.message not in untrained]
    borders = [border_of(span, filled, control) for span in learned]
    kind = EMPTY_TRAINED if thoughts.train_empty else EMPTY_UNTRAINED
    for border in borders:
        if skip := empty_thought(border, filled, control):
            counts[kind] = counts.get(kind, 0) + 1
            border.learned = border.at if thoughts.train_empty else skip
    if plan.hidden_reasoning:
        counts[HIDDEN] = counts.get(HIDDEN, 0) + plan.hidden_reasoning
    if written := calls_as_text(conversation.messages, untrained, template):
        counts[CALLS_AS_TEXT] = written
    if untrained:
        counts[UNTRAINED] = len(untrained)
    answer = filled.text[borders[-1].text_at : borders[-1].text_end] if borders else ""
    found = {match[0] for slot in skeleton.slots for match in control.found_in(slot.text)}
    weights = None
    if conversation.weights:
        check_unmoved(conversation, moved.conversation)
        weights = placed_weights(
            moved.conversation, [span.message for span in learned], filled, skeleton, template.name
        )
    return _Filled(filled.marked, borders, plan.controls, answer, tuple(sorted(found)), counts, weights)


def _encoded(row: _Filled, encoding: Tokenized, control: ControlTokens) -> Encoded:
    _check_controls(encoding.tokens, row.controls, control)
    if not row.borders:
        return Encoded(encoding.tokens, [], [], row.answer, row.control_tokens_as_text, 0, row.counts)
    # a tokenizer may join the prompt's last characters with the answer's first: the last answer is then encoded apart,
    # so that training begins at the token where generation begins
    laid, causes = continued(row.marked, row.borders, encoding, control)
    for cause in causes:
        row.counts[cause] = row.counts.get(cause, 0) + 1
    turns = [(laid.first(border), laid.at(border.end)) for border in row.borders]
    prompt_ids, opened = laid.asked(row.borders[-1], control)
    weights = None
    if row.weights is not None:
        weights = token_weights(laid, [(*turn, own) for turn, own in zip(turns, row.weights, strict=True)])
    return Encoded(laid.tokens, turns, prompt_ids, row.answer, row.control_tokens_as_text, opened, row.counts, weights)


def _check_controls(tokens: np.ndarray, written: int, control: ControlTokens) -> None:
    if control.count(tokens) != written:
        text = "its vocabulary builds a control token from plain text; take the text out of the row"
        raise BadRow("control token in text", f"the tokenizer cannot encode this row's text as text: {text}")
