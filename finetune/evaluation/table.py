"""The evaluation's table on a screen, and what to look at."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybrid_ft.finetune.data.tokens.reasoning import END
from hybrid_ft.finetune.evaluation.answers import show_answers
from hybrid_ft.finetune.evaluation.measure import METHOD, Measure
from hybrid_ft.finetune.evaluation.scored import Scored
from hybrid_ft.finetune.runs.console import duration, say

_COLOURS = {"better": "green", "worse": "red"}


def show(
    console: Console, models: Sequence[str], measures: Sequence[Measure], scored: Sequence[Sequence[Scored]]
) -> None:
    """The table, its method, warnings, and the speed. ``scored``: of each task the answers of each model."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("rows", justify="right")
    for name in models:
        table.add_column(Text(name), justify="right", overflow="fold")
    for name in models[1:]:
        heading = Text(f"{name} - {models[0]}") if len(models) > 2 else "difference"
        # a narrow screen breaks words and cuts nothing off
        table.add_column(heading, justify="right", overflow="fold")
    if any(measure.met is not None for measure in measures):
        table.add_column("met in training", justify="right")
    blocks = [[m for m in measures if not m.forgetting], [m for m in measures if m.forgetting]]
    for number, block in enumerate(blocks):
        if number and block:
            table.add_section()
            table.add_row(Text("forgetting", style="bold"))
        for measure in block:
            table.add_row(*_cells(measure, len(models)), *_met(measure))
    console.print(table)
    say(console, METHOD)
    for of_task in scored:
        for name, found in zip(models, of_task, strict=True):
            for text in warnings(name, found):
                say(console, f"warning: {text}")
            if (line := _all_wrong(found)) is not None:
                show_answers(console, line["origin"], [("answer", line["answer"]), ("reference", line["reference"])])
            if found.tokens:
                rate = found.tokens / max(found.seconds, 1e-9)
                say(
                    console,
                    f"{name}: {found.name}: {found.tokens:,} tokens in {duration(found.seconds)} ({rate:,.0f}/s)",
                )


def _cells(measure: Measure, models: int) -> list[Text | str]:
    cells: list[Text | str] = [Text(f"{measure.task}: {measure.name}"), f"{measure.items:,}"]
    cells += [measure.score_in_words(model) for model in range(models)]
    return cells + [
        Text(measure.in_words(model), style=_COLOURS.get(measure.verdict(model), "")) for model in range(1, models)
    ]


def _met(measure: Measure) -> list[str]:
    return [] if measure.met is None else [f"{100 * measure.met:.1f} %"]


def all_warnings(models: Sequence[str], scored: Sequence[Sequence[Scored]]) -> list[str]:
    """Of every task and model."""
    return [
        text
        for of_task in scored
        for name, found in zip(models, of_task, strict=True)
        for text in warnings(name, found)
    ]


def warnings(model: str, found: Scored) -> list[str]:
    """What is likely to be a mistake in the task and not in the model."""
    texts = [f"{model}: {found.name}: {remark}" for remark in found.remarks]
    if _all_wrong(found) is not None:
        texts.append(
            f"{model}: {found.name}: every answer scores 0, which most often is a prompt or template that the "
            "model cannot follow"
        )
    if unended := sum(bool(line.get("unended")) for line in found.lines):
        mark = (found.task and found.task.after) or END
        texts.append(
            f"{model}: {found.name}: {unended:,} of {len(found.lines):,} rows have an answer without {mark}, "
            "which counts as wrong; a larger max_new_tokens may let it end"
        )
    cut = sum(bool(line.get("cut")) for line in found.lines)
    if found.task is not None and 10 * cut > len(found.lines):
        share = f"{cut:,} of {len(found.lines):,}"
        texts.append(f"{model}: {found.name}: {share} answers were cut at max_new_tokens ({found.task.max_new_tokens})")
    return texts


def _all_wrong(found: Scored) -> dict[str, str] | None:
    """The first line of a task whose first measure is exactly 0 on every row."""
    name = next(iter(found.lines[0]["scores"]), None)
    if name is None or name in found.falling or any(line["scores"].get(name) for line in found.lines):
        return None
    return found.lines[0]
