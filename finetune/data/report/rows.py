"""What a recipe's data comes to: the counts, as an object, as lines and as JSON. ``view`` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hybrid_ft.finetune.data.packing import empty_share, padding_share
from hybrid_ft.finetune.data.reading import SourceReport
from hybrid_ft.finetune.data.report.tally import Tallies, joined

_EXAMPLES = 3


@dataclass
class Side:
    """The rows that are trained on, or those held out.

    ``padding``: the share of padding in padded batches, in the order of the rows. ``packs``, ``empty``: how many packs
    and what takes the place of padding there, the share of their budget that no token uses; None without packing. ``duplicates``: rows that are there before.
    """

    lengths: np.ndarray
    trained: int
    duplicates: int
    padding: float
    packs: int | None = None
    empty: float | None = None

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def trained_share(self) -> float:
        return self.trained / max(1, self.tokens)

    def as_dict(self) -> dict[str, Any]:
        quantiles = np.percentile(self.lengths, [0, 50, 95, 100])
        shortest, median, near_longest, longest = (int(value) for value in quantiles)
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "trained_tokens": self.trained,
            "trained_share": self.trained_share,
            "duplicate_rows": self.duplicates,
            "length": {"shortest": shortest, "median": median, "95_percent": near_longest, "longest": longest},
            "padding_share_padded": self.padding,
            "packs": self.packs,
            "padding_share_packed": self.empty,
        }


def side(
    lengths: np.ndarray, trained: np.ndarray, texts: np.ndarray, packs: list[list[int]] | None, batch: int, budget: int
) -> Side:
    """The counts of some rows. ``texts`` [rows]: hashes of whole rows; ``batch``: rows of a padded batch."""
    return Side(
        lengths=lengths,
        trained=int(trained.sum()),
        duplicates=len(texts) - len(np.unique(texts)),
        padding=padding_share(lengths, batch),
        packs=None if packs is None else len(packs),
        empty=None if packs is None else empty_share(lengths, packs, budget),
    )


@dataclass
class Example:
    """A row to look at: runs of text, each with whether it is trained."""

    origin: str
    runs: list[tuple[str, bool]]


@dataclass
class Report:
    """The account of a recipe's data. ``refusal`` is what stops the run, if anything does."""

    template: str
    max_length: int
    batch_size: int
    batch_tokens: int
    sources: list[SourceReport]
    eval_sources: list[SourceReport]
    train: Side
    eval: Side | None
    shared_prompts: int = 0
    """held-out rows from sources of their own that ask what a training row asks"""
    examples: list[Example] = field(default_factory=list)
    refusal: str | None = None

    def summary(self) -> list[str]:
        """The counts in a few short lines, for the start of a run."""
        lines = [_source_line(source) for source in self.sources]
        lines += [f"{_source_line(source)}, held out" for source in self.eval_sources]
        lines.append(_side_line("train", self.train, self.batch_tokens, self.batch_size))
        if self.eval:
            lines.append(_side_line("held out", self.eval, self.batch_tokens, self.batch_size))
        lines += self.warnings()
        return lines

    def warnings(self) -> list[str]:
        """What a user should know of before training, a line each."""
        lines = []
        sources = [*self.sources, *self.eval_sources]
        for source in sources:
            if source.cut.count:
                lines.append(f"cut to {self.max_length:,} tokens: {source.cut}")
            if source.unshown_thoughts.count:
                lines.append(
                    f"reasoning that the chat template does not show, so not trained: {source.unshown_thoughts}"
                )
            if source.untrained.count:
                lines.append(f"turns not trained by their own flag: {source.untrained}")
        for token, tally in joined([source.neutralised for source in sources]).most_first():
            lines.append(f"{token} in a row's text, encoded as plain text: {tally}")
        if self.train.duplicates:
            lines.append(f"rows that are there twice or more, kept: {self.train.duplicates:,}")
        if self.shared_prompts:
            lines.append(f"held-out rows that ask what a training row asks: {self.shared_prompts:,}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        return {
            "chat_template": self.template,
            "max_length": self.max_length,
            "sources": [source.as_dict() for source in self.sources],
            "eval_sources": [source.as_dict() for source in self.eval_sources],
            "train": self.train.as_dict(),
            "eval": self.eval.as_dict() if self.eval else None,
            "shared_prompts": self.shared_prompts,
            "refusal": self.refusal,
        }


def counted(number: int, thing: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def share(part: float) -> str:
    return f"{100 * part:.1f} %"


def dropped_text(dropped: Tallies, read: int) -> str:
    reasons = "; ".join(f"{reason}: {tally}" for reason, tally in dropped.most_first())
    return f"{dropped.count:,} of {counted(read, 'row')} ({share(dropped.count / max(1, read))}): {reasons}"


def _source_line(source: SourceReport) -> str:
    line = f"{source.name}: {source.form}, {counted(source.read, 'row')}"
    if source.dropped.count:
        line += f", dropped {dropped_text(source.dropped, source.read)}"
    if source.taken != source.kept:
        line += f", {source.taken:,} taken"
    if source.ignored:
        line += f", unused: {', '.join(source.ignored)}"
    return line


def _side_line(name: str, rows: Side, budget: int, batch: int) -> str:
    line = f"{name}: {counted(rows.rows, 'row')}, {counted(rows.tokens, 'token')}, {share(rows.trained_share)} trained"
    if rows.packs is None or rows.empty is None:
        return f"{line}; {share(rows.padding)} padding in batches of {counted(batch, 'row')}"
    packed = f"{counted(rows.packs, 'pack')} of {budget:,} tokens, {share(rows.empty)} padding"
    return f"{line}; {packed} ({share(rows.padding)} before packing, in batches of {counted(batch, 'row')})"


def refusal(sources: Sequence[SourceReport], most: float, what: str) -> str | None:
    """Why a run may not start: too large a share of the rows would be dropped, or none is left."""
    read = sum(source.read for source in sources)
    dropped = joined([source.dropped for source in sources])
    fix = "Mend the rows, or raise the limit that they meet"
    if dropped.count == read:
        return f"{what}: no row can be trained on; dropped {dropped_text(dropped, read)}. {fix}"
    if dropped.count > most * read:
        return f"{what}: dropped {dropped_text(dropped, read)}; data.max_dropped allows {share(most)}. {fix}"
    return None


def rows_to_show(source: np.ndarray) -> list[int]:
    """Rows to show: the first of each source, then rows spread over the rest."""
    firsts = np.unique(source, return_index=True)[1].tolist()
    spread = np.linspace(0, len(source) - 1, _EXAMPLES + 2, dtype=int)[1:-1].tolist()
    return list(dict.fromkeys(firsts + spread))[:_EXAMPLES]
