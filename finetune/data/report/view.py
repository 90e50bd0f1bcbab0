"""The data report on a console: readable with colour and without."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybrid_ft.finetune.data.reading import SourceReport
from hybrid_ft.finetune.data.report.rows import Example, Report, Side, counted, share

_T = TypeVar("_T")
_BAR = 40
_LONGEST_RUN = 600
_MOST_RUNS = 16


def draw(report: Report, console: Console) -> None:
    """Sources, lengths, padding, what to know of, and examples, in that order."""
    for source in report.sources:
        _draw_source(source, console, "")
    for source in report.eval_sources:
        _draw_source(source, console, " (held out)")
    _draw_sides(report, console)
    _draw_lengths(report.train, console)
    for line in report.warnings():
        console.print(Text(f"note: {plain(line)}", style="yellow"), soft_wrap=True)
    if report.examples:
        console.print()
        console.print(
            Text.assemble(
                f"Examples, chat template {report.template}: ", ("what is learned", "bold green"), " stands in 【 】"
            )
        )
    for example in report.examples:
        _draw_example(example, console)


def _draw_source(source: SourceReport, console: Console, note: str) -> None:
    console.print(Text(f"{plain(source.name)}{note}", style="bold"), soft_wrap=True)
    lines = [("form", f"{source.form}: {source.reads}")]
    if source.notes:
        lines.append(("file", ", ".join(source.notes)))
    lines.append(("unused", ", ".join(source.ignored) or "nothing"))
    taken = "" if source.taken == source.kept else f", {source.taken:,} taken into the mix"
    lines.append(("rows", f"{source.read:,} read, {source.kept:,} usable{taken}"))
    dropped = source.dropped.most_first()
    lines.append(("dropped", f"{source.dropped.count:,}"))
    lines += [("", f"{reason}: {tally}") for reason, tally in dropped]
    lines.append(("cut", str(source.cut)))
    draw_lines(lines, console)


def draw_lines(lines: list[tuple[str, str]], console: Console) -> None:
    """Named lines. They are left to the terminal to wrap: places are copied from them, and a break would spoil those."""
    for name, text in lines:
        console.print(Text.assemble((f"  {name:<9} ", "dim"), plain(text)), soft_wrap=True)


def _draw_sides(report: Report, console: Console) -> None:
    batches = f"in batches of {counted(report.batch_size, 'row')}"
    lines: list[tuple[str, Callable[[Side], str]]] = [
        ("rows", lambda rows: f"{rows.rows:,}"),
        ("tokens", lambda rows: f"{rows.tokens:,}"),
        ("trained", lambda rows: share(rows.trained_share)),
        ("duplicates", lambda rows: f"{rows.duplicates:,}"),
    ]
    if report.train.packs is None:
        lines.append((f"padding, {batches}", lambda rows: share(rows.padding)))
    else:
        lines += [
            (f"packs of {report.batch_tokens:,} tokens", lambda rows: f"{rows.packs:,}"),
            (f"padding before packing, {batches}", lambda rows: share(rows.padding)),
            ("padding after packing, room left in packs", lambda rows: share(rows.empty or 0.0)),
        ]
    sides = [("train", report.train)] + ([("held out", report.eval)] if report.eval else [])
    draw_sides(sides, lines, console)


def draw_sides(sides: list[tuple[str, _T]], lines: list[tuple[str, Callable[[_T], str]]], console: Console) -> None:
    """A column for each side and a line for each count, which fits a narrow terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for name, _ in sides:
        table.add_column(name, justify="right")
    for name, cell in lines:
        table.add_row(name, *(cell(side) for _, side in sides))
    console.print()
    console.print(table)


def _draw_lengths(rows: Side, console: Console) -> None:
    shortest, median, near_longest, longest = (int(value) for value in np.percentile(rows.lengths, [0, 50, 95, 100]))
    console.print()
    text = f"shortest {shortest:,}, median {median:,}, 95 % up to {near_longest:,}, longest {longest:,}"
    console.print(Text.assemble(("Tokens per row", "bold"), f": {text}"))
    bar = "█" if (console.encoding or "").lower().startswith("utf") else "#"
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    for label, count, width in histogram(rows.lengths):
        table.add_row(label, f"{count:,}", Text(bar * width, style="cyan"))
    console.print(table)


def histogram(lengths: np.ndarray) -> list[tuple[str, int, int]]:
    """(range, rows, bar width) from the shortest to the longest row; every range is twice as wide as the one before.

    Neighbouring ranges without rows are one.
    """
    edges = [int(2 ** np.floor(np.log2(lengths.min())))]
    while edges[-1] <= lengths.max():
        edges.append(2 * edges[-1])
    if len(edges) < 7:  # rows of much the same length: ranges of one width show more
        step = _round_up((int(lengths.max()) - int(lengths.min()) + 1) / 12)
        first = int(lengths.min()) // step * step
        edges = list(range(first, int(lengths.max()) + step + 1, step))
    counts, _ = np.histogram(lengths, bins=np.array(edges) - 0.5)
    most = counts.max()
    rows: list[tuple[str, int, int]] = []
    bins = zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
    for empty, group in itertools.groupby(bins, lambda part: part[2] == 0):
        parts = list(group)
        if empty:  # a gap is one line
            parts = [(parts[0][0], parts[-1][1], 0)]
        for low, high, count in parts:
            label = f"{low:,} to {high - 1:,}" if high - low > 1 else f"{low:,}"
            rows.append((label, count, int(np.ceil(count / most * _BAR))))
    return rows[:-1] if not rows[-1][1] else rows  # rounding may leave an empty range behind the longest row


def _round_up(step: float) -> int:
    power = 1
    while True:
        for lead in (1, 2, 5):
            if lead * power >= step:
                return lead * power
        power *= 10


def _draw_example(example: Example, console: Console) -> None:
    console.print()
    console.print(Text(plain(example.origin), style="bold"), soft_wrap=True)
    text = Text()
    for run, trained in example.runs[:_MOST_RUNS]:
        inner = plain(shortened(run))
        text.append(f"【{inner}】" if trained else inner, style="bold green" if trained else "dim")
    if len(example.runs) > _MOST_RUNS:
        text.append(" ... and more turns", style="dim")
    console.print(text)


def shortened(text: str) -> str:
    left_out = len(text) - _LONGEST_RUN
    if left_out <= 100:
        return text
    half = _LONGEST_RUN // 2
    return f"{text[:half]} [... {left_out:,} characters ...] {text[-half:]}"


def plain(text: str) -> str:
    """Text without characters that could move a terminal's cursor: each is shown by its code instead."""
    if text.isprintable():
        return text
    return "".join(char if char in "\n\t" or not _moves(char) else f"\\x{ord(char):02x}" for char in text)


def _moves(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf") and char not in "\u200c\u200d"
