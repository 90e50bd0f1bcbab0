"""What a recipe's pairs come to: the counts, as an object, as lines and as JSON. ``view`` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hybrid_ft.finetune.data.pair_reading import PairSourceReport
from hybrid_ft.finetune.data.report.rows import counted, dropped_text, share
from hybrid_ft.finetune.data.report.tally import joined


@dataclass
class PairSide:
    """The pairs that are trained on, or those held out.

    ``prompt``, ``chosen``, ``rejected`` [pairs]: tokens of the three parts. ``prompts``: how many different prompts
    there are; ``duplicates``: pairs that are there before.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    prompts: int
    duplicates: int

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

    def as_dict(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "prompts": self.prompts,
            "duplicate_pairs": self.duplicates,
            "tokens": self.tokens,
            "tokens_with_prompt_twice": self.tokens + int(self.prompt.sum()),
            "saved_share": self.saved_share,
            "chosen_longer_share": self.chosen_longer,
            "equally_long_share": self.equally_long,
            "length": {name: lengths_of(part) for name, part in self.parts().items()},
        }


def lengths_of(tokens: np.ndarray) -> dict[str, float]:
    """Shortest, median, 95th percentile, longest and mean."""
    shortest, median, near_longest, longest = (int(value) for value in np.percentile(tokens, [0, 50, 95, 100]))
    mean = float(tokens.mean())
    return {"shortest": shortest, "median": median, "95_percent": near_longest, "longest": longest, "mean": mean}


@dataclass
class PairExample:
    """A pair to look at."""

    origin: str
    prompt: str
    chosen: str
    rejected: str


@dataclass
class PairReport:
    """The account of a recipe's pairs. ``refusal`` is what stops the run, if anything does."""

    template: str
    max_length: int
    batch_tokens: int
    sources: Sequence[PairSourceReport]
    eval_sources: Sequence[PairSourceReport]
    train: PairSide
    eval: PairSide | None
    shared_prompts: int = 0
    """held-out pairs from sources of their own whose prompt a training pair has"""
    examples: list[PairExample] = field(default_factory=list)
    refusal: str | None = None

    def summary(self) -> list[str]:
        """The counts in a few short lines, for the start of a run."""
        lines = [_source_line(source) for source in self.sources]
        lines += [f"{_source_line(source)}, held out" for source in self.eval_sources]
        lines.append(_side_line("train", self.train))
        if self.eval:
            lines.append(_side_line("held out", self.eval))
        return lines + self.warnings()

    def warnings(self) -> list[str]:
        """What a user should know of before training, a line each."""
        sources = [*self.sources, *self.eval_sources]
        lines = []
        for source in sources:
            for tally, text in (
                (source.cut_prompts, "prompts that lost their beginning"),
                (source.cut, "pairs of which an answer lost its end"),
                (source.unshown_thoughts, "pairs with reasoning that the chat template does not show, so not compared"),
                (source.split_line_ends, "answers that begin with a line end, encoded apart from the header's"),
            ):
                if tally.count:
                    lines.append(f"{text}: {tally}")
        for token, tally in joined([source.neutralised for source in sources]).most_first():
            lines.append(f"{token} in a row's text, encoded as plain text: {tally}")
        if self.train.duplicates:
            lines.append(f"pairs that are there twice or more, kept: {self.train.duplicates:,}")
        if self.shared_prompts:
            lines.append(f"held-out pairs that ask what a training pair asks: {self.shared_prompts:,}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        return {
            "chat_template": self.template,
            "max_length": self.max_length,
            "batch_tokens": self.batch_tokens,
            "sources": [source.as_dict() for source in self.sources],
            "eval_sources": [source.as_dict() for source in self.eval_sources],
            "train": self.train.as_dict(),
            "eval": self.eval.as_dict() if self.eval else None,
            "shared_prompts": self.shared_prompts,
            "refusal": self.refusal,
        }


def _source_line(source: PairSourceReport) -> str:
    line = f"{source.name}: {source.form}, {counted(source.read, 'row')}"
    if source.dropped.count:
        line += f", dropped {dropped_text(source.dropped, source.read)}"
    if source.taken != source.kept:
        line += f", {source.taken:,} taken"
    if source.ignored:
        line += f", unused: {', '.join(source.ignored)}"
    return line


def _side_line(name: str, pairs: PairSide) -> str:
    line = f"{name}: {counted(pairs.pairs, 'pair')}, {counted(pairs.tokens, 'token')}, {share(pairs.saved_share)} saved by shared prompts"
    mean = ", ".join(f"{part} {tokens.mean():,.0f}" for part, tokens in pairs.parts().items() if part != "pair")
    return f"{line}; mean tokens {mean}; chosen is the longer in {share(pairs.chosen_longer)}"
