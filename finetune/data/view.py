"""The data report on a console: readable with colour and without."""

from __future__ import annotations

import unicodedata

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybrid_ft.finetune.data.reading import SourceReport
from hybrid_ft.finetune.data.report import Example, Report, Side, share

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
        console.print(Text(f"note: {line}", style="yellow"))
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
    console.print(Text(f"{plain(source.name)}{note}", style="bold"))
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
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    for name, text in lines:
        table.add_row(Text(name, style="dim"), Text(plain(text)))
    console.print(table)


def _draw_sides(report: Report, console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "rows", "tokens", "trained", "duplicates", f"padding, batches of {report.batch_size}"):
        table.add_column(heading, justify="left" if not heading else "right")
    packed = report.train.packs is not None
    if packed:
        table.add_column(f"packs of {report.batch_tokens:,}", justify="right")
        table.add_column("empty", justify="right")
    for name, rows in (("train", report.train), ("held out", report.eval)):
        if rows is None:
            continue
        cells = [name, f"{rows.rows:,}", f"{rows.tokens:,}", share(rows.trained_share), f"{rows.duplicates:,}"]
        cells.append(share(rows.padding))
        if packed and rows.packs is not None and rows.empty is not None:
            cells += [f"{rows.packs:,}", share(rows.empty)]
        table.add_row(*cells)
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
    """(range, rows, bar width) from the shortest to the longest row; every range is twice as wide as the one before."""
    edges = [int(2 ** np.floor(np.log2(lengths.min())))]
    while edges[-1] <= lengths.max():
        edges.append(2 * edges[-1])
    if len(edges) < 7:  # rows of much the same length: ranges of one width show more
        step = _round_up((int(lengths.max()) - int(lengths.min()) + 1) / 12)
        first = int(lengths.min()) // step * step
        edges = list(range(first, int(lengths.max()) + step + 1, step))
    counts, _ = np.histogram(lengths, bins=np.array(edges) - 0.5)
    most = counts.max()
    return [
        (f"{low:,} to {high - 1:,}" if high - low > 1 else f"{low:,}", int(count), int(np.ceil(count / most * _BAR)))
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def _round_up(step: float) -> int:
    power = 1
    while True:
        for lead in (1, 2, 5):
            if lead * power >= step:
                return lead * power
        power *= 10


def _draw_example(example: Example, console: Console) -> None:
    console.print()
    console.print(Text(plain(example.origin), style="bold"))
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
