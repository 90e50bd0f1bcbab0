"""Counts of judged answers: good and bad, tokens, shared prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid_ft.finetune.data.report.account import counted, lengths_of, share

BALANCE = (1.0, 4 / 3)
"""The weight of all good answers over that of all bad ones, from and to: equation 8 of the paper (2402.01306)."""


@dataclass
class AnswerCounts:
    """The judged answers that are trained on, or those held out.

    ``prompt``, ``completion`` [rows]: tokens of the two parts; ``good`` bool [rows]. ``prompts``: how many different
    ones there are, ``once``: their tokens; ``duplicates``: rows that are there before; ``reversed_too``: rows that are
    there with the other label; ``weights``: of good and of bad answers.
    """

    prompt: np.ndarray
    completion: np.ndarray
    good: np.ndarray
    prompts: int
    once: int
    duplicates: int
    reversed_too: int
    batch_tokens: int
    weights: tuple[float, float]
    unit: str = "row"

    @property
    def rows(self) -> int:
        return len(self.prompt)

    @property
    def tokens(self) -> int:
        """Tokens of all rows, each with its own prompt."""
        return int((self.prompt + self.completion).sum())

    @property
    def saved_share(self) -> float:
        """Share of these that computing each prompt once saves at most."""
        return (int(self.prompt.sum()) - self.once) / max(1, self.tokens)

    @property
    def good_rows(self) -> int:
        return int(self.good.sum())

    def parts(self) -> dict[str, np.ndarray]:
        return {"prompt": self.prompt, "completion": self.completion, "row": self.prompt + self.completion}

    def table(self) -> list[tuple[str, str]]:
        return [
            ("rows", f"{self.rows:,}"),
            ("good", f"{self.good_rows:,}"),
            ("bad", f"{self.rows - self.good_rows:,}"),
            ("prompts", f"{self.prompts:,}"),
            ("tokens", f"{self.tokens:,}"),
            ("tokens of a micro-batch at most", f"{self.batch_tokens:,}"),
            ("saved by shared prompts, at most", share(self.saved_share)),
            ("duplicates", f"{self.duplicates:,}"),
        ]

    def line(self, name: str) -> str:
        return (
            f"{name}: {counted(self.rows, 'row')}, {self.good_rows:,} good and {self.rows - self.good_rows:,} bad, "
            f"{counted(self.prompts, 'prompt')}, {counted(self.tokens, 'token')}, at most {share(self.saved_share)} saved "
            f"by shared prompts; mean tokens prompt {self.prompt.mean():,.0f}, completion {self.completion.mean():,.0f}"
        )

    def notes(self) -> list[str]:
        """A missing side, or weights that leave one side heavier than the paper advises."""
        good, bad = self.good_rows, self.rows - self.good_rows
        if not good or not bad:
            missing = "bad" if good else "good"
            return [
                f"no answer is {missing}: the model can only learn to make all answers {'more' if good else 'less'} likely"
            ]
        of_good, of_bad = self.weights
        low, high = BALANCE
        # a zero weight is a choice
        if not of_good or not of_bad or low * 0.995 <= of_good * good / (of_bad * bad) <= high * 1.005:
            return []
        ratio = f"{of_good * good / (of_bad * bad):.2f}"
        to_good = f"{low * of_bad * bad / good:.2f} to {high * of_bad * bad / good:.2f}"
        to_bad = f"{of_good * good / (high * bad):.2f} to {of_good * good / (low * bad):.2f}"
        text = (
            f"good answers weigh {ratio} times as much as bad ones; 1 to 1.33 is advised: set kto.desirable_weight to "
            f"{to_good}, or kto.undesirable_weight to {to_bad}"
        )
        return [text]

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "good_rows": self.good_rows,
            "bad_rows": self.rows - self.good_rows,
            "batch_tokens": self.batch_tokens,
            "prompts": self.prompts,
            "duplicate_rows": self.duplicates,
            "rows_there_both_ways": self.reversed_too,
            "tokens": self.tokens,
            "saved_share": self.saved_share,
            "length": {name: lengths_of(part) for name, part in self.parts().items()},
        }
