"""The report on pairs on a console: readable with colour and without."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybrid_ft.finetune.data.report import share
from hybrid_ft.finetune.data.view import histogram, plain, shortened
from hybrid_ft.finetune.pairs.reading import PairSourceReport
from hybrid_ft.finetune.pairs.report import PairExample, PairReport, PairSide, lengths_of

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
        console.print(Text(f"note: {line}", style="yellow"))
    if report.examples:
        console.print()
        console.print(Text(f"Examples, chat template {report.template}; the answers are what is compared", "bold"))
    for example in report.examples:
        _draw_example(example, console)


def _draw_source(source: PairSourceReport, console: Console, note: str) -> None:
    console.print(Text(f"{plain(source.name)}{note}", style="bold"))
    lines = [("form", f"{source.form}: {source.reads}")]
    if source.notes:
        lines.append(("file", ", ".join(source.notes)))
    lines.append(("unused", ", ".join(source.ignored) or "nothing"))
    taken = "" if source.taken == source.kept else f", {source.taken:,} taken into the mix"
    lines.append(("rows", f"{source.read:,} read, {source.kept:,} usable{taken}"))
    lines.append(("dropped", f"{source.dropped.count:,}"))
    lines += [("", f"{reason}: {tally}") for reason, tally in source.dropped.most_first()]
    lines.append(("cut", f"prompts: {source.cut_prompts}; answers: {source.cut}"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    for name, text in lines:
        table.add_row(Text(name, style="dim"), Text(plain(text)))
    console.print(table)


def _draw_sides(report: PairReport, console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in (
        "",
        "pairs",
        "prompts",
        "tokens",
        "prompts twice",
        "saved",
        "chosen longer",
        "as long",
        "duplicates",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, side in (("train", report.train), ("held out", report.eval)):
        if side is not None:
            twice = side.tokens + int(side.prompt.sum())
            cells = [f"{side.pairs:,}", f"{side.prompts:,}", f"{side.tokens:,}", f"{twice:,}", share(side.saved_share)]
            cells += [share(side.chosen_longer), share(side.equally_long), f"{side.duplicates:,}"]
            table.add_row(name, *cells)
    console.print()
    console.print(table)


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
    console.print(Text(plain(example.origin), style="bold"))
    for name, style in _STYLES.items():
        shown = plain(shortened(getattr(example, name)))
        console.print(Text.assemble((f"{name} ", f"bold {style}"), (f"【{shown}】", style)))
