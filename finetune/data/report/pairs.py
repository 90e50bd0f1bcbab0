"""Counts of preference pairs: tokens of their parts, and what shared prompts save."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid_ft.finetune.data.report.account import counted, lengths_of, share


@dataclass
class PairCounts:
    """The pairs that are trained on, or those held out.

    ``prompt``, ``chosen``, ``rejected`` [pairs]: tokens of the three parts. ``prompts``: how many different prompts
    there are; ``duplicates``: pairs that are there before; ``reversed_too``: pairs that are there with the other answer
    preferred as well.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    prompts: int
    duplicates: int
    reversed_too: int
    batch_tokens: int
    unit: str = "pair"

    @property
    def pairs(self) -> int:
        return len(self.prompt)

    @property
    def tokens(self) -> int:
        """Tokens that are computed, each pair's prompt once."""
        return int((self.prompt + self.chosen + self.rejected).sum())

    @property
    def saved_share(self) -> float:
        """Share of the tokens of two whole rows a pair that computing the prompt once saves."""
        prompt = int(self.prompt.sum())
        return prompt / (self.tokens + prompt)

    @property
    def chosen_longer(self) -> float:
        return float((self.chosen > self.rejected).mean())

    @property
    def equally_long(self) -> float:
        return float((self.chosen == self.rejected).mean())

    def parts(self) -> dict[str, np.ndarray]:
        """Tokens [pairs] of each part, and of what a micro-batch has to hold."""
        whole = self.prompt + self.chosen + self.rejected
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected, "pair": whole}

    def table(self) -> list[tuple[str, str]]:
        return [
            ("pairs", f"{self.pairs:,}"),
            ("prompts", f"{self.prompts:,}"),
            ("tokens, prompt once", f"{self.tokens:,}"),
            ("tokens, prompt twice", f"{self.tokens + int(self.prompt.sum()):,}"),
            ("tokens of a micro-batch at most", f"{self.batch_tokens:,}"),
            ("saved by shared prompts", share(self.saved_share)),
            ("chosen is longer", share(self.chosen_longer)),
            ("both as long", share(self.equally_long)),
            ("duplicates", f"{self.duplicates:,}"),
        ]

    def line(self, name: str) -> str:
        line = f"{name}: {counted(self.pairs, 'pair')}, {counted(self.tokens, 'token')}"
        mean = ", ".join(f"{part} {tokens.mean():,.0f}" for part, tokens in self.parts().items() if part != "pair")
        return (
            f"{line}, {share(self.saved_share)} saved by shared prompts; mean tokens {mean}; "
            f"chosen is the longer in {share(self.chosen_longer)}"
        )

    def notes(self) -> list[str]:
        return []

    def as_dict(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "batch_tokens": self.batch_tokens,
            "prompts": self.prompts,
            "duplicate_pairs": self.duplicates,
            "pairs_there_both_ways": self.reversed_too,
            "tokens": self.tokens,
            "tokens_with_prompt_twice": self.tokens + int(self.prompt.sum()),
            "saved_share": self.saved_share,
            "chosen_longer_share": self.chosen_longer,
            "equally_long_share": self.equally_long,
            "length": {name: lengths_of(part) for name, part in self.parts().items()},
        }
