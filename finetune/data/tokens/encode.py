"""Conversations to tokens, and which of the tokens are learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.training_marks import Weights
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.skeleton import Skeleton, as_rendered
from hybrid_ft.finetune.data.tokens.template import RUNAWAY, ChatTemplate, Place, Plan, escaped
from hybrid_ft.finetune.data.tokens.weights import placed, token_weights

if TYPE_CHECKING:
    from tokenizers import Encoding

HIDDEN_REASONING, UNTRAINED, CUT = "reasoning_not_shown", "turns_not_trained_by_flag", "cut"
"""What happens to rows that are kept: the keys under which it is counted."""


@dataclass(slots=True)
class Encoded:
    """A row in tokens.

    ``turns``: [first, last] of the tokens of each assistant turn that is trained, the token that ends it included.
    ``prompt_ids`` and ``answer``: what comes before the last of them, up to where an answer is asked for, and the text
    of that turn. ``control_tokens_as_text``: control tokens that stood in the row's texts and were encoded as text.
    ``hidden_reasoning``: reasoning texts that the template does not write; ``untrained``: turns whose own flag says so.
    ``weights``: of each token in the loss; None where all are 1.
    """

    ids: list[int]
    turns: list[tuple[int, int]]
    prompt_ids: list[int]
    answer: str
    control_tokens_as_text: tuple[str, ...]
    hidden_reasoning: int
    untrained: int = 0
    weights: list[float] | None = None

    def labels(self) -> list[int]:
        """The ids where they are learned, -100 elsewhere."""
        labels = [-100] * len(self.ids)
        for first, last in self.turns:
            labels[first : last + 1] = self.ids[first : last + 1]
        if self.weights is not None:
            labels = [label if weight else -100 for label, weight in zip(labels, self.weights, strict=True)]
        return labels

    def columns(self) -> dict[str, Any]:
        """The row for the file of tokens, its origin apart."""
        return {
            "input_ids": self.ids,
            "labels": self.labels(),
            "weights": self.weights or [],
            "prompt_ids": self.prompt_ids,
            "answer": self.answer,
        }

    def sizes(self) -> dict[str, int]:
        """Tokens of the row, and how many of them are trained."""
        if self.weights is not None:
            return {"length": len(self.ids), "trained": sum(label != -100 for label in self.labels())}
        return {"length": len(self.ids), "trained": sum(last - first + 1 for first, last in self.turns)}

    def happened(self) -> dict[str, int]:
        """What a user should know of, with how often."""
        return {HIDDEN_REASONING: bool(self.hidden_reasoning), UNTRAINED: self.untrained}


@dataclass(slots=True)
class _Filled:
    """A plan with a conversation's texts in it."""

    plan: Plan
    marked: str
    spans: list[tuple[int, int]]  # characters of ``marked``: where a turn begins, where its end token does
    answer: str
    control_tokens_as_text: tuple[str, ...]
    dropped_reasoning: int
    untrained: int
    weights: list[Weights] | None  # of each span


def encode(conversations: list[Conversation], template: ChatTemplate, control: ControlTokens) -> list[Encoded | BadRow]:
    """Encode conversations; a row that cannot be encoded with certainty comes back as the BadRow that says why.

    A row on which the template had to be stopped is the last that comes back: the next might take as long.
    """
    filled: list[_Filled | BadRow] = []
    for conversation in conversations:
        row = _filled_or_bad(conversation, template, control)
        filled.append(row)
        if isinstance(row, BadRow) and row.kind == RUNAWAY:
            break
    encodings = iter(control.encode([row.marked for row in filled if isinstance(row, _Filled)]))
    opening = control.encode([control.mark(template.opening)])[0].ids if template.opening else []
    rows: list[Encoded | BadRow] = []
    for row in filled:
        if isinstance(row, BadRow):
            rows.append(row)
            continue
        try:
            rows.append(_encoded(row, next(encodings), control, opening))
        except BadRow as bad:
            rows.append(bad)
    return rows


def _filled_or_bad(conversation: Conversation, template: ChatTemplate, control: ControlTokens) -> _Filled | BadRow:
    try:
        return _filled(conversation, template, control)
    except BadRow as bad:
        return bad


def _filled(conversation: Conversation, template: ChatTemplate, control: ControlTokens) -> _Filled:
    skeleton = template.skeleton(conversation)
    messages = as_rendered(conversation, template.reasoning)
    text = template.render(messages, conversation.tools)
    plan = template.plan(skeleton)
    pieces = _pieces(plan, skeleton)
    if "".join(pieces) != text:
        template.forget(skeleton)
        plan = template.plan(skeleton)
        pieces = _pieces(plan, skeleton)
        if "".join(pieces) != text:
            reason = f"chat template {template.name} changes this row's text as it writes it"
            raise BadRow("chat template", f"{reason}; which tokens are the answer's cannot be told")
    marked = list(pieces)
    marked[::2] = plan.marked
    starts, marked_starts = _starts(pieces), _starts(marked)
    learned = [span for span in plan.spans if span.message not in conversation.untrained]
    spans = [(_at(span.start, marked_starts), _at(span.end, marked_starts)) for span in learned]
    answer = ""
    if learned:
        last = learned[-1]
        begin, end = (starts[2 * place.literal] + place.plain for place in (last.start, last.end))
        answer = text[begin:end]
    found = {match[0] for slot in skeleton.slots for match in control.pattern.finditer(slot.text)}
    dropped = 0 if template.reasoning else sum("reasoning_content" in message for message in conversation.messages)
    weights = None
    if conversation.weights:
        weights = placed(conversation, [span.message for span in learned], plan, skeleton, marked, template.name)
    untrained = len(conversation.untrained)
    return _Filled(plan, "".join(marked), spans, answer, tuple(sorted(found)), dropped, untrained, weights)


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


def _at(place: Place, marked_starts: list[int]) -> int:
    return marked_starts[2 * place.literal] + place.marked


def _encoded(row: _Filled, encoding: Encoding, control: ControlTokens, opening: list[int]) -> Encoded:
    ids = encoding.ids
    if control.count(ids) != row.plan.controls:
        text = "its vocabulary builds a control token from plain text; take the text out of the row"
        raise BadRow("control token in text", f"the tokenizer cannot encode this row's text as text: {text}")
    turns = [(_first_token(encoding, start, end), _token_at(encoding, end)) for start, end in row.spans]
    prompt_ids: list[int] = []
    if row.spans:
        start, first = row.spans[-1][0], turns[-1][0]
        chars = encoding.token_to_chars(first - 1) if first else None
        # where one token holds the template's last and the answer's first character, a prompt ends in other tokens
        shared = chars is not None and chars[1] > start
        prompt_ids = (control.encode([row.marked[:start]])[0].ids if shared else ids[:first]) + opening
    hidden = row.plan.hidden_reasoning + row.dropped_reasoning
    weights = None
    if row.weights is not None:
        weights = token_weights(encoding, [(*turn, own) for turn, own in zip(turns, row.weights, strict=True)])
    return Encoded(ids, turns, prompt_ids, row.answer, row.control_tokens_as_text, hidden, row.untrained, weights)


def _token_at(encoding: Encoding, position: int) -> int:
    token = encoding.char_to_token(position)
    assert token is not None, "a control token is a token"
    return token


def _first_token(encoding: Encoding, start: int, end: int) -> int:
    """The first token whose characters all belong to the turn."""
    # A token may hold characters of both sides: of the header's last line end and of one that the answer begins with.
    # It is not trained: a prompt ends with the header's own tokens, after which the model could never produce it.
    for position in range(start, end + 1):
        token = encoding.char_to_token(position)
        if token is None:
            continue  # the tokenizer drops some white space
        chars = encoding.token_to_chars(token)
        assert chars is not None
        return token + 1 if chars[0] < start else token
    raise AssertionError("the end token is a token")
