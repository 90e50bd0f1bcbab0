"""Pairs in tokens: the prompt once, and both answers to their end token."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.preference import Preference, Unusable
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.borders import NOT_ASKED_MERGE
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import OF_TURNS, UNTRAINED, Encoded, encode
from hybrid_ft.finetune.data.tokens.reasoning import AS_GIVEN, Thoughts
from hybrid_ft.finetune.data.tokens.template import ChatTemplate


@dataclass(slots=True)
class TokenPair:
    """``prompt + chosen`` and ``prompt + rejected`` are the two conversations as the template renders them.

    ``control_tokens_as_text``: control tokens that stood in the texts and were encoded as text; ``counts``: what a user
    should know of, by the account's kinds. Both are of the two sides together.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    control_tokens_as_text: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    margin: float = 0.0

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
        ids = {"prompt_ids": self.prompt, "chosen_ids": self.chosen, "rejected_ids": self.rejected}
        return ids | {"margin": self.margin}

    def sizes(self) -> dict[str, int]:
        """Tokens of the three parts."""
        return {"prompt": len(self.prompt), "chosen": len(self.chosen), "rejected": len(self.rejected)}

    def happened(self) -> dict[str, int]:
        """What a user should know of, with how often: in pairs, but for OF_TURNS."""
        return {kind: count if kind in OF_TURNS else bool(count) for kind, count in self.counts.items()}


def encode_pairs(
    pairs: list[Preference], template: ChatTemplate, control: ControlTokens, thoughts: Thoughts = AS_GIVEN
) -> list[TokenPair | BadRow | Unusable]:
    """Encode pairs; one that cannot be encoded with certainty, or of which nothing is left, comes
    back as the reason."""
    encoded = encode([answer_alone(side) for pair in pairs for side in pair.sides()], template, control, thoughts)
    results: list[TokenPair | BadRow | Unusable] = []
    for index in range((len(encoded) + 1) // 2):  # fewer where the template had to be stopped
        try:
            chosen, rejected = (side_of(row, template) for row in encoded[2 * index : 2 * index + 2])
            results.append(replace(_joined(chosen, rejected), margin=pairs[index].margin))
        except (BadRow, Unusable) as reason:
            results.append(reason)
    return results


def answer_alone(side: Conversation) -> Conversation:
    """A conversation of which only the last answer is learned."""
    last = len(side.messages) - 1
    earlier = [index for index, message in enumerate(side.messages[:last]) if message["role"] == "assistant"]
    return replace(side, weights=side.weights | {index: [(None, 0.0)] for index in earlier})


def side_of(row: Encoded | BadRow, template: ChatTemplate) -> Encoded:
    """A row that can be cut where its last answer begins. Raises BadRow."""
    if isinstance(row, BadRow):
        raise row
    row.counts.pop(UNTRAINED, None)
    if not row.turns:
        text = "does not mark the last answer as generated, so which tokens are the answer's cannot be told"
        raise BadRow("chat template", f"chat template {template.name} {text}")
    if row.counts.get(NOT_ASKED_MERGE):
        raise BadRow(
            "chat template", "the tokenizer joins the answer's beginning with the template's header in one token"
        )
    return row


def cut(row: Encoded, opened: int) -> tuple[list[int], list[int]]:
    """Prompt and answer; ``opened`` tokens that ask for it belong to the answer."""
    first, last = row.turns[-1]
    ids = row.ids
    return ids[: first - opened], ids[first - opened : last + 1]


def _joined(chosen: Encoded, rejected: Encoded) -> TokenPair:
    """Both sides on the one prompt. Raises Unusable where they do not share it, or are the same."""
    (prompt, good), (other, bad) = cut(chosen, 0), cut(rejected, 0)
    if prompt != other and chosen.opened != rejected.opened:
        # what asks for an answer holds more than the header (<think>), and only one of the two begins with it
        (prompt, good), (other, bad) = cut(chosen, chosen.opened), cut(rejected, rejected.opened)
    if prompt != other:
        text = "the chat template writes the prompt in other tokens before chosen than before rejected"
        raise Unusable("no shared prompt", text)
    if good == bad:
        raise Unusable("identical answers", "chosen and rejected are the same tokens")
    return TokenPair(
        prompt,
        good,
        bad,
        chosen.control_tokens_as_text + rejected.control_tokens_as_text,
        dict(Counter(chosen.counts) + Counter(rejected.counts)),
    )
