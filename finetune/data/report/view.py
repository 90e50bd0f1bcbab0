"""The account of the data on a console, with colour and without."""

from __future__ import annotations

import itertools
import unicodedata

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybrid_ft.finetune.data.report.account import Account, Example, SourceCounts, SplitCounts, lengths_of

_BAR = 40
_LONGEST_RUN = 600
_MOST_PARTS = 16
_STYLES = {"context": "dim", "trained": "bold green", "prompt": "dim", "chosen": "green", "rejected": "red"}


def draw(account: Account, console: Console) -> None:
    """Sources, counts, lengths, what to know of, and examples, in that order."""
    if account.sample:
        console.print(Text(account.sample, style="yellow"), soft_wrap=True)
    for source in account.sources:
        _draw_source(source, console, "")
    for source in account.eval_sources:
        _draw_source(source, console, " (held out)")
    _draw_splits(account.splits(), console)
    _draw_lengths(account.train, console)
    for line in account.warnings():
        console.print(Text(f"note: {plain(line)}", style="yellow"), soft_wrap=True)
    if account.examples:
        console.print()
        heading = f"Examples, chat template {account.template}: "
        console.print(Text.assemble(heading, ("what is learned", "bold green"), " stands in 【 】"))
    for example in account.examples:
        _draw_example(example, console)


def _draw_source(source: SourceCounts, console: Console, note: str) -> None:
    console.print(Text(f"{plain(source.name)}{note}", style="bold"), soft_wrap=True)
    lines = [("format", f"{source.format}: {source.reads}")]
    if source.notes:
        lines.append(("file", ", ".join(source.notes)))
    lines.append(("unused", ", ".join(source.ignored) or "nothing"))
    taken = "" if source.taken == source.kept else f", {source.taken:,} taken into the mix{source.times()}"
    passed = f" ({source.passed_over:,} passed over, as only or without says)" if source.passed_over else ""
    passed += f" of {source.of:,}, drawn as count says" if source.of else ""
    share = f", {100 * source.share:.1f} % of the trained tokens" if source.share < 1 else ""
    lines.append(("rows", f"{source.read:,} read{passed}, {source.kept:,} usable{taken}{share}"))
    lines.append(("dropped", f"{source.dropped.count:,}"))
    lines += [("", f"{reason}: {count}") for reason, count in source.dropped.most_first()]
    for name, text in lines:
        # left to the terminal to wrap: places are copied from these lines, and a break would spoil them
        console.print(Text.assemble((f"  {name:<9} ", "dim"), plain(text)), soft_wrap=True)


def _draw_splits(splits: dict[str, SplitCounts], console: Console) -> None:
    """A column for each split and a line for each count, which fits a narrow terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in splits:
        table.add_column(name, justify="right")
    for cells in zip(*(counts.table() for counts in splits.values()), strict=True):
        table.add_row(cells[0][0], *(value for _, value in cells))
    console.print()
    console.print(table)


def _draw_lengths(counts: SplitCounts, console: Console) -> None:
    parts = counts.parts()
    console.print()
    table = Table(box=None, padding=(0, 2, 0, 2))
    table.add_column(f"tokens per {counts.unit}", style="bold")
    for heading in ("shortest", "median", "95 % up to", "longest", "mean"):
        table.add_column(heading, justify="right")
    for name, tokens in parts.items():
        cells = [f"{value:,.0f}" for value in lengths_of(tokens).values()]
        table.add_row(Text(name, style=_STYLES.get(name, "")), *cells)
    console.print(table)
    console.print()
    bar = "█" if (console.encoding or "").lower().startswith("utf") else "#"
    chart = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    chart.add_column(justify="right")
    chart.add_column(justify="right")
    chart.add_column()
    for label, count, width in histogram(parts[counts.unit]):
        chart.add_row(label, f"{count:,}", Text(bar * width, style="cyan"))
    console.print(chart)


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
    for part in example.parts[:_MOST_PARTS]:
        style, inner = _STYLES[part.kind], plain(shortened(part.text))
        if part.heading:
            text.append("\n" if text else "").append(f"{part.heading} ", style=f"bold {style}")
        text.append(inner if part.kind == "context" else f"【{inner}】", style=style)
    if len(example.parts) > _MOST_PARTS:
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
