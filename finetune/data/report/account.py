"""The account of a recipe's data: every row, as lines and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hybrid_ft.finetune.data.messages import noticed
from hybrid_ft.finetune.data.report.count import Count, Counts, added_up
from hybrid_ft.finetune.data.tokens import borders, reasoning
from hybrid_ft.finetune.data.tokens.calls_as_text import CALLS_AS_TEXT
from hybrid_ft.finetune.data.tokens.encode import CUT, EMPTY_TRAINED, EMPTY_UNTRAINED, OF_TURNS, UNTRAINED
from hybrid_ft.finetune.data.tokens.fit_pairs import CUT_PROMPT

IN_PIECES = "texts_in_pieces"
_EXAMPLES = 3
NOTES = {
    CUT_PROMPT: "prompts that lost their beginning",
    CUT: "{unit}s of which an answer lost its end, to fit data.max_length",
    IN_PIECES: "texts that are trained in pieces of data.max_length tokens",
    reasoning.HIDDEN: "{unit}s with reasoning that the chat template does not show, so not trained (see data.reasoning)",
    reasoning.DROPPED: "{unit}s whose reasoning was left out, as data.reasoning says",
    reasoning.AS_TEXT: "{unit}s whose reasoning was put into the answer's text in <think> tags, as data.reasoning says",
    reasoning.LONE_END: "{unit}s with a </think> that nothing opens; what is before it was read as reasoning",
    reasoning.LONE_KEPT: "{unit}s with a </think> that nothing opens, trained as text (see data.reasoning)",
    CALLS_AS_TEXT: "{unit}s with calls of tools in an answer's text, trained as text; the chat template writes those that "
    "are given as tool_calls: [{{name: ..., arguments: {{...}}}}]",
    EMPTY_TRAINED: "turns in which the chat template writes an empty thought, which is trained "
    "(data.train_empty_thoughts: false leaves it out)",
    EMPTY_UNTRAINED: "turns in which the chat template writes an empty thought, not trained",
    UNTRAINED: "turns not trained by their own flag",
    borders.SPLIT_LINE_ENDS: "answers that begin with a line end, encoded apart from the header's",
    borders.SPLIT_MERGES: "answers that would change the last tokens of what asks for them, encoded apart from those",
    borders.NOT_ASKED_THOUGHT: "{unit}s that the model is never asked for: the prompt for an answer ends in what theirs "
    "does not begin with, such as <think> before an answer without a thought",
    borders.NOT_ASKED_TURNS: "{unit}s that the model is never asked for: the chat template writes the turns before an "
    "answer in another way when it asks for that",
    borders.NOT_ASKED_MERGE: "{unit}s with an answer that changes the last tokens of what asks for it, and cannot be encoded "
    "apart from those: an earlier answer, or one of a tokenizer without the means",
    **noticed.NOTES,
}
"""What can happen to rows that are kept, and how a note puts it."""
UNITS = dict.fromkeys(OF_TURNS, "turns") | noticed.UNITS
"""What is counted, where it is not rows."""


IN_A_TEST = "asked in an evaluation"
"""Why a row is dropped that data.decontaminate has found."""


@dataclass
class SourceCounts:
    """What one source holds and what became of it.

    ``kept``: rows in tokens, before the mix takes its share. ``taken``: rows of the mix, each as often as it is there;
    ``repeat``: how often that is at most; ``share``: of the trained tokens of all sources. ``happened``: by the keys of
    NOTES; ``left_out``: rows by a column that belongs to what is asked or trained and that nothing reads;
    ``rated_bad``: rows by a column of true and false that says false of them. ``passed_over``: rows that the source's
    ``only`` or ``without`` leaves out, which are not read. ``of``: all rows of a source of which a sample was drawn
    before they were read; else 0."""

    name: str
    format: str = ""
    reads: str = ""
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read: int = 0
    kept: int = 0
    taken: int = 0
    repeat: int = 1
    share: float = 1.0
    dropped: Counts = field(default_factory=Counts)
    control_tokens_as_text: Counts = field(default_factory=Counts)
    happened: Counts = field(default_factory=Counts)
    left_out: Counts = field(default_factory=Counts)
    rated_bad: Counts = field(default_factory=Counts)
    passed_over: int = 0
    of: int = 0

    def count(self, kind: str) -> Count:
        """How often one of NOTES happened."""
        return self.happened.by_reason.get(kind, Count())

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "format": self.format,
            "reads": self.reads,
            "ignored": self.ignored,
            "notes": self.notes,
            "rows_read": self.read,
            "rows_kept": self.kept,
            "rows_taken": self.taken,
            "repeat": self.repeat,
            "share_of_trained_tokens": round(self.share, 4),
            "dropped": self.dropped.as_dict(),
            "control_strings_as_text": self.control_tokens_as_text.as_dict(),
            "columns_left_out": self.left_out.as_dict(),
            "rows_rated_bad": self.rated_bad.as_dict(),
            "rows_passed_over": self.passed_over,
            "rows_drawn_from": self.of or None,
        } | {kind: self.count(kind).as_dict(UNITS.get(kind, "rows")) for kind in NOTES}

    def times(self) -> str:
        """That rows are repeated, where they are."""
        return f", each up to {self.repeat} times" if self.repeat > 1 else ""

    def line(self) -> str:
        """The counts on one line."""
        line = f"{self.name}: {self.format}, {counted(self.read, 'row')}"
        if self.passed_over:
            line += f" of {self.read + self.passed_over:,}, as only or without says"
        if self.of:
            line += f" of {self.of:,}, drawn as count says"
        if self.dropped.count:
            line += f", dropped {dropped_text(self.dropped, self.read)}"
        if self.taken != self.kept:
            line += f", {self.taken:,} taken{self.times()}"
        if self.ignored:
            line += f", unused: {', '.join(self.ignored)}"
        return line


class SplitCounts(Protocol):
    """The rows that are trained on, or those held out."""

    unit: str
    """what one of them is called"""
    duplicates: int
    reversed_too: int
    """those of which the contrary is there as well: the other answer preferred, or the same one judged otherwise"""

    def parts(self) -> dict[str, np.ndarray]:
        """Tokens [rows] of each part of a row; the last is the whole."""
        ...

    def table(self) -> list[tuple[str, str]]:
        """Names and values of the counts."""
        ...

    def line(self, name: str) -> str:
        """The counts on one line."""
        ...

    def notes(self) -> list[str]:
        """What else a user should know of these rows before training on them."""
        ...

    def as_dict(self) -> dict[str, Any]: ...


@dataclass
class Part:
    """A run of text of an example. ``kind``: context or trained, prompt, chosen or rejected; ``heading``: its name."""

    text: str
    kind: str
    heading: str = ""


@dataclass
class Example:
    """A row or pair to look at."""

    origin: str
    parts: list[Part]


@dataclass
class Account:
    """What a recipe's data comes to. ``refusal`` is what stops the run, if anything does."""

    template: str
    max_length: int
    sources: list[SourceCounts]
    eval_sources: list[SourceCounts]
    train: SplitCounts
    eval: SplitCounts | None
    shared_prompts: int = 0
    """held-out rows from sources of their own that ask what a training row asks"""
    examples: list[Example] = field(default_factory=list)
    refusal: str | None = None
    sample: str | None = None
    """of what part of the rows all this was counted, where it is not of all"""

    def splits(self) -> dict[str, SplitCounts]:
        return {"train": self.train} | ({"held out": self.eval} if self.eval else {})

    def summary(self) -> list[str]:
        """The counts in a few short lines, for the start of a run."""
        lines = [self.sample] if self.sample else []
        lines += [source.line() for source in self.sources]
        lines += [f"{source.line()}, held out" for source in self.eval_sources]
        lines += [counts.line(name) for name, counts in self.splits().items()]
        return lines + self.warnings()

    def warnings(self) -> list[str]:
        """What a user should know of before training, a line each."""
        unit, sources = self.train.unit, [*self.sources, *self.eval_sources]
        lines = [
            f"{text.format(unit=unit)}: {source.count(kind)}"
            for source in sources
            for kind, text in NOTES.items()
            if source.count(kind).count
        ]
        for source in sources:
            for column, count in source.left_out.most_first():
                lines.append(f"column {column} is left out of the {unit}s that have it: {count}")
            for column, count in source.rated_bad.most_first():
                fix, called = (
                    f"only: {{{column}: true}} beside the source's path takes the good ones",
                    f"column {column}",
                )
                if column[0] == "{":  # with the value that says so
                    fix, called = f"without: {column} beside the source's path leaves them out", column
                lines.append(f"{unit}s that their {called} calls bad, trained all the same: {count}; {fix}")
        for token, count in added_up([source.control_tokens_as_text for source in sources]).most_first():
            lines.append(f"{token} in a row's text, encoded as plain text: {count}")
        if self.train.duplicates:
            lines.append(f"{unit}s that are there twice or more, kept: {self.train.duplicates:,}")
        if self.train.reversed_too:
            contrary = "A over B beside B over A" if unit == "pair" else "good beside bad"
            lines.append(f"{unit}s of which the contrary, {contrary}, is there: {self.train.reversed_too:,}")
        if self.shared_prompts:
            lines.append(f"held-out {unit}s that ask what a training {unit} asks: {self.shared_prompts:,}")
        return lines + self.train.notes()

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
        } | ({"sample": self.sample} if self.sample else {})


def counted(number: int, thing: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def share(part: float) -> str:
    return f"{100 * part:.1f} %"


def lengths_of(tokens: np.ndarray) -> dict[str, float]:
    """Shortest, median, 95th percentile, longest and mean of tokens [rows]."""
    shortest, median, near_longest, longest = (int(value) for value in np.percentile(tokens, [0, 50, 95, 100]))
    mean = float(tokens.mean())
    return {"shortest": shortest, "median": median, "95_percent": near_longest, "longest": longest, "mean": mean}


def dropped_text(dropped: Counts, read: int) -> str:
    reasons = "; ".join(f"{reason}: {count}" for reason, count in dropped.most_first())
    return f"{dropped.count:,} of {counted(read, 'row')} ({share(dropped.count / max(1, read))}): {reasons}"


def refusal(sources: Sequence[SourceCounts], most: float, what: str) -> str | None:
    """Why a run may not start: too large a share of the rows would be dropped, or none is left."""
    read = sum(source.read for source in sources)
    dropped = added_up([source.dropped for source in sources])
    wanted = dropped.by_reason.get(IN_A_TEST, Count()).count
    fix = "Fix the rows, or raise the limit that they meet"
    if dropped.count == read:
        return f"{what}: no row can be trained on; dropped {dropped_text(dropped, read)}. {fix}"
    if dropped.count - wanted > most * read:
        return f"{what}: dropped {dropped_text(dropped, read)}; data.max_dropped allows {share(most)}. {fix}"
    return None


def rows_to_show(source: np.ndarray) -> list[int]:
    """Rows to show: the first of each source, then rows spread over the rest. ``source``: of every row, [rows]."""
    firsts = np.unique(source, return_index=True)[1].tolist()
    spread = np.linspace(0, len(source) - 1, _EXAMPLES + 2, dtype=int)[1:-1].tolist()
    return list(dict.fromkeys(firsts + spread))[:_EXAMPLES]
