"""Judged answers in tokens: the prompt, and the answer to its end token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hybrid_ft.finetune.data.messages.judgement import Judgement
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import OF_TURNS, encode
from hybrid_ft.finetune.data.tokens.encode_pairs import answer_alone, cut, side_of
from hybrid_ft.finetune.data.tokens.reasoning import AS_GIVEN, Thoughts
from hybrid_ft.finetune.data.tokens.template import ChatTemplate


@dataclass(slots=True)
class TokenAnswer:
    """``prompt + completion`` is the conversation as the template renders it; ``good``: its label. The rest is as in
    ``TokenPair``."""

    prompt: list[int]
    completion: list[int]
    good: bool
    control_tokens_as_text: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)

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
        """What a user should know of, with how often: in answers, but for OF_TURNS."""
        return {kind: count if kind in OF_TURNS else bool(count) for kind, count in self.counts.items()}


def encode_judged(
    rows: list[Judgement], template: ChatTemplate, control: ControlTokens, thoughts: Thoughts = AS_GIVEN
) -> list[TokenAnswer | BadRow | Unusable]:
    """Encode judged answers; one that cannot be encoded with certainty comes back as the reason."""
    encoded = encode([answer_alone(row.conversation) for row in rows], template, control, thoughts)
    results: list[TokenAnswer | BadRow | Unusable] = []
    for row, tokens in zip(rows, encoded, strict=False):  # fewer where the template had to be stopped
        try:
            side = side_of(tokens, template)
        except BadRow as bad:
            results.append(bad)
            continue
        prompt, answer = cut(side, 0)
        if not prompt:
            text = "the answer stands alone; nothing says what it answers"
            results.append(Unusable("no prompt", text))
            continue
        results.append(TokenAnswer(prompt, answer, row.good, side.control_tokens_as_text, side.counts))
    return results
