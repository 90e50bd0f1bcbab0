"""Pairs in tokens: the prompt once, and both answers to their end token."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.preference import Preference, Unusable
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import HIDDEN_REASONING, Encoded, encode
from hybrid_ft.finetune.data.tokens.template import ChatTemplate

SPLIT_LINE_ENDS = "line_ends_split_from_header"

_LINE_ENDS = re.compile(r"\s*\n")


@dataclass(slots=True)
class TokenPair:
    """``prompt + chosen`` and ``prompt + rejected`` are the two conversations as the template renders them.

    ``control_tokens_as_text``: control tokens that stood in the texts and were encoded as text; ``hidden_reasoning``: reasoning
    texts that the template does not write; ``split_line_ends``: answers whose first line end the tokenizer would have
    joined with the header's. Each counts both sides.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    control_tokens_as_text: tuple[str, ...] = ()
    hidden_reasoning: int = 0
    split_line_ends: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two rows."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    @property
    def tokens(self) -> int:
        """Tokens that the pair costs where the prompt is computed once."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)

    def columns(self) -> dict[str, Any]:
        """The pair for the file of tokens, its origin apart."""
        return {"prompt_ids": self.prompt, "chosen_ids": self.chosen, "rejected_ids": self.rejected}

    def sizes(self) -> dict[str, int]:
        """Tokens of the three parts."""
        return {"prompt": len(self.prompt), "chosen": len(self.chosen), "rejected": len(self.rejected)}

    def happened(self) -> dict[str, int]:
        """What a user should know of, with how often."""
        return {HIDDEN_REASONING: bool(self.hidden_reasoning), SPLIT_LINE_ENDS: bool(self.split_line_ends)}


@dataclass(slots=True)
class Side:
    """A conversation cut where its last answer begins; ``split_line_end``: the answer's first line end was one token with
    the header's."""

    prompt: list[int]
    answer: list[int]
    encoded: Encoded
    split_line_end: bool = False


def encode_pairs(
    pairs: list[Preference], template: ChatTemplate, control: ControlTokens
) -> list[TokenPair | BadRow | Unusable]:
    """Encode pairs; one that cannot be encoded with certainty, or of which nothing is left, comes back as the reason."""
    encoded = encode([side for pair in pairs for side in pair.sides()], template, control)
    opening = control.encode([control.mark(template.opening)])[0].ids
    results: list[TokenPair | BadRow | Unusable] = []
    for index, pair in enumerate(pairs[: (len(encoded) + 1) // 2]):  # fewer where the template had to be stopped
        try:
            sides = [
                side_of(conversation, row, template, control)
                for conversation, row in zip(pair.sides(), encoded[2 * index : 2 * index + 2], strict=True)
            ]
            results.append(_joined(sides[0], sides[1], opening))
        except (BadRow, Unusable) as reason:
            results.append(reason)
    return results


def side_of(conversation: Conversation, row: Encoded | BadRow, template: ChatTemplate, control: ControlTokens) -> Side:
    """A conversation cut where its last answer begins. Raises BadRow."""
    if isinstance(row, BadRow):
        raise row
    if len(row.turns) < sum(message["role"] == "assistant" for message in conversation.messages):
        text = "marks only some of the assistant's turns as generated, so which tokens are the answer's cannot be told"
        raise BadRow("chat template", f"chat template {template.name} {text}")
    if not _joins_header(row):
        return _cut(row)
    # The header ends in a line end and the answer begins with one, and one token holds both. Nothing the model is
    # asked with ends in that token, so the answer's line ends become tokens of their own.
    answer = conversation.messages[-1]
    lead = _LINE_ENDS.match(answer["content"])
    if lead:
        rest: dict[str, Any] = answer | {"content": answer["content"][lead.end() :]}
        again = encode([replace(conversation, messages=[*conversation.messages[:-1], rest])], template, control)[0]
        if isinstance(again, Encoded) and not _joins_header(again):
            side = _cut(again)
            return Side(side.prompt, control.encode([lead[0]])[0].ids + side.answer, row, split_line_end=True)
    raise BadRow("chat template", "the tokenizer joins the answer's beginning with the template's header in one token")


def _joins_header(row: Encoded) -> bool:
    """Whether a token holds both the template's last and the answer's first character."""
    first = row.turns[-1][0]
    return row.prompt_ids[:first] != row.ids[:first]


def _cut(row: Encoded) -> Side:
    first, last = row.turns[-1]
    return Side(row.ids[:first], row.ids[first : last + 1], row)


def _joined(chosen: Side, rejected: Side, opening: list[int]) -> TokenPair:
    """Both sides on the one prompt. Raises Unusable where they do not share it, or are the same."""
    if chosen.prompt != rejected.prompt:
        text = "the chat template writes the prompt in other tokens before chosen than before rejected"
        raise Unusable("no shared prompt", text)
    if chosen.answer == rejected.answer:
        raise Unusable("identical answers", "chosen and rejected are the same tokens")
    # what asks for an answer may hold more than the header (<think>); answers that begin with it begin after it
    size = len(opening)
    if chosen.answer[:size] != opening or rejected.answer[:size] != opening:
        size = 0
    return TokenPair(
        chosen.prompt + opening[:size],
        chosen.answer[size:],
        rejected.answer[size:],
        chosen.encoded.control_tokens_as_text + rejected.encoded.control_tokens_as_text,
        chosen.encoded.hidden_reasoning + rejected.encoded.hidden_reasoning,
        chosen.split_line_end + rejected.split_line_end,
    )
