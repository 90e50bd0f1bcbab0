"""The report on pairs on a console: readable with colour and without."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybrid_ft.finetune.data.pair_reading import PairSourceReport
from hybrid_ft.finetune.data.report.pairs import PairExample, PairReport, PairSide, lengths_of
from hybrid_ft.finetune.data.report.rows import share
from hybrid_ft.finetune.data.report.view import draw_lines, draw_sides, histogram, plain, shortened

_STYLES = {"prompt": "dim", "chosen": "green", "rejected": "red"}


def draw(report: PairReport, console: Console) -> None:
    """Sources, counts, lengths, what to know of, and examples, in that order."""
    for source in report.sources:
        _draw_source(source, console, "")
    for source in report.eval_sources:
        _draw_source(source, console, " (held out)")
    _draw_sides(report, console)
    _draw_lengths(report.train, report.batch_tokens, console)
    for line in report.warnings():
        console.print(Text(f"note: {plain(line)}", style="yellow"), soft_wrap=True)
    if report.examples:
        console.print()
        console.print(Text(f"Examples, chat template {report.template}; the answers are what is compared", "bold"))
    for example in report.examples:
        _draw_example(example, console)


def _draw_source(source: PairSourceReport, console: Console, note: str) -> None:
    console.print(Text(f"{plain(source.name)}{note}", style="bold"), soft_wrap=True)
    lines = [("form", f"{source.form}: {source.reads}")]
    if source.notes:
        lines.append(("file", ", ".join(source.notes)))
    lines.append(("unused", ", ".join(source.ignored) or "nothing"))
    taken = "" if source.taken == source.kept else f", {source.taken:,} taken into the mix"
    lines.append(("rows", f"{source.read:,} read, {source.kept:,} usable{taken}"))
    lines.append(("dropped", f"{source.dropped.count:,}"))
    lines += [("", f"{reason}: {tally}") for reason, tally in source.dropped.most_first()]
    lines.append(("cut", f"prompts: {source.cut_prompts}; answers: {source.cut}"))
    draw_lines(lines, console)


def _draw_sides(report: PairReport, console: Console) -> None:
    lines: list[tuple[str, Callable[[PairSide], str]]] = [
        ("pairs", lambda side: f"{side.pairs:,}"),
        ("prompts", lambda side: f"{side.prompts:,}"),
        ("tokens, prompt once", lambda side: f"{side.tokens:,}"),
        ("tokens, prompt twice", lambda side: f"{side.tokens + int(side.prompt.sum()):,}"),
        ("saved by shared prompts", lambda side: share(side.saved_share)),
        ("chosen is longer", lambda side: share(side.chosen_longer)),
        ("both as long", lambda side: share(side.equally_long)),
        ("duplicates", lambda side: f"{side.duplicates:,}"),
    ]
    draw_sides([("train", report.train)] + ([("held out", report.eval)] if report.eval else []), lines, console)


def _draw_lengths(side: PairSide, budget: int, console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 2))
    table.add_column("tokens", style="bold")
    for heading in ("shortest", "median", "95 % up to", "longest", "mean"):
        table.add_column(heading, justify="right")
    for name, part in side.parts().items():
        cells = [f"{value:,.0f}" for value in lengths_of(part).values()]
        table.add_row(Text(name, style=_STYLES.get(name, "")), *cells)
    console.print()
    console.print(table)
    console.print()
    text = f": the prompt once and both answers; a micro-batch holds {budget:,}"
    console.print(Text.assemble(("Tokens per pair", "bold"), text))
    bar = "█" if (console.encoding or "").lower().startswith("utf") else "#"
    chart = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    chart.add_column(justify="right")
    chart.add_column(justify="right")
    chart.add_column()
    for label, count, width in histogram(side.parts()["pair"]):
        chart.add_row(label, f"{count:,}", Text(bar * width, style="cyan"))
    console.print(chart)


def _draw_example(example: PairExample, console: Console) -> None:
    console.print()
    console.print(Text(plain(example.origin), style="bold"), soft_wrap=True)
    for name, style in _STYLES.items():
        shown = plain(shortened(getattr(example, name)))
        console.print(Text.assemble((f"{name} ", f"bold {style}"), (f"【{shown}】", style)))
