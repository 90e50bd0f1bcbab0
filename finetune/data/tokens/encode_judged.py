"""Judged answers in tokens: the prompt, and the answer to its end token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hybrid_ft.finetune.data.messages.judgement import Judgement
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import HIDDEN_REASONING, encode
from hybrid_ft.finetune.data.tokens.encode_pairs import SPLIT_LINE_ENDS, side_of
from hybrid_ft.finetune.data.tokens.template import ChatTemplate


@dataclass(slots=True)
class TokenAnswer:
    """``prompt + completion`` is the conversation as the template renders it; ``good``: its label. The rest is as in
    ``TokenPair``."""

    prompt: list[int]
    completion: list[int]
    good: bool
    control_tokens_as_text: tuple[str, ...] = ()
    hidden_reasoning: int = 0
    split_line_ends: int = 0

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.completion)

    def columns(self) -> dict[str, Any]:
        """The answer for the file of tokens, its origin apart."""
        return {"prompt_ids": self.prompt, "completion_ids": self.completion, "label": self.good}

    def sizes(self) -> dict[str, int]:
        """Tokens of the two parts, and whether it is a good answer."""
        return {"prompt": len(self.prompt), "completion": len(self.completion), "good": int(self.good)}

    def happened(self) -> dict[str, int]:
        """What a user should know of, with how often."""
        return {HIDDEN_REASONING: bool(self.hidden_reasoning), SPLIT_LINE_ENDS: self.split_line_ends}


def encode_judged(
    rows: list[Judgement], template: ChatTemplate, control: ControlTokens
) -> list[TokenAnswer | BadRow | Unusable]:
    """Encode judged answers; one that cannot be encoded with certainty comes back as the reason."""
    encoded = encode([row.conversation for row in rows], template, control)
    opening = control.encode([control.mark(template.opening)])[0].ids
    results: list[TokenAnswer | BadRow | Unusable] = []
    for row, tokens in zip(rows, encoded, strict=False):  # fewer where the template had to be stopped
        try:
            side = side_of(row.conversation, tokens, template, control)
        except BadRow as bad:
            results.append(bad)
            continue
        if not side.prompt:
            text = "the answer stands alone; nothing says what it answers"
            results.append(Unusable("no prompt", text))
            continue
        # what asks for an answer may hold more than the header (<think>); an answer that begins with it begins after it
        size = len(opening) if side.answer[: len(opening)] == opening else 0
        results.append(
            TokenAnswer(
                side.prompt + opening[:size],
                side.answer[size:],
                row.good,
                side.encoded.control_tokens_as_text,
                side.encoded.hidden_reasoning,
                int(side.split_line_end),
            )
        )
    return results
