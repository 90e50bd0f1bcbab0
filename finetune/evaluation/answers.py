"""Greedy answers to held-out prompts and samples, before and after training, and their table."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybrid_ft.finetune.data.tokens.prompts import PromptEncoder
from hybrid_ft.finetune.evaluation.hard_rows import kept
from hybrid_ft.finetune.evaluation.kept_answers import measures
from hybrid_ft.finetune.generation.generate import answer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe.schema import Evaluate


LONGEST = 240
"""characters of an answer that are shown"""


def answer_held_out(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, end_ids: list[int], wanted: Evaluate
) -> list[dict[str, Any]]:
    """Greedy answers to ``wanted.answers`` held-out prompts, spread evenly over the rows: origin, question, answer,
    reference, exact.

    Rows of plain text ask nothing and are passed over.
    """
    if wanted.answers and len(rows):
        import pyarrow.compute as pc

        asked = pc.list_value_length(rows.select_columns(["prompt_ids"]).with_format("arrow")[:]["prompt_ids"])
        rows = rows.select(pc.indices_nonzero(asked).to_pylist())
    count = min(wanted.answers, len(rows))
    chosen = rows.select([index * len(rows) // count for index in range(count)]) if count else rows.select([])
    answers = answer(model, tokenizer, list(chosen["prompt_ids"]), end_ids, wanted.max_new_tokens)
    return [
        {
            "origin": row["origin"],
            "question": kept(str(tokenizer.decode(row["prompt_ids"], skip_special_tokens=True))),
            "answer": text,
            "reference": row["answer"],
            "exact": text.strip() == row["answer"].strip(),
        }
        for row, text in zip(chosen, answers, strict=True)
    ]


def answer_samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, end_ids: list[int], wanted: Evaluate
) -> list[dict[str, Any]]:
    """Greedy answers to the recipe's own prompts."""
    if not wanted.samples:
        return []
    encode = PromptEncoder(tokenizer)
    prompts = [encode([{"role": "user", "content": prompt}]) for prompt in wanted.samples]
    answers = answer(model, tokenizer, prompts, end_ids, wanted.max_new_tokens)
    return [{"prompt": prompt, "answer": text} for prompt, text in zip(wanted.samples, answers, strict=True)]


def show(console: Console, before: dict[str, Any], after: dict[str, Any]) -> None:
    """The table before | after. Each has ``loss`` (or None), ``answers`` and ``samples`` as made above."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for measure, cells in measures([before["answers"], after["answers"]]).items():
        table.add_row(measure, *cells)
    if after["loss"] is not None:
        table.add_row("held-out loss", f"{before['loss']:.4f}", f"{after['loss']:.4f}")
    if table.row_count:
        console.print(table)
    for was, now in list(zip(before["answers"], after["answers"], strict=True))[:3]:
        show_answers(
            console,
            now["origin"],
            [("before", was["answer"]), ("after", now["answer"]), ("reference", now["reference"])],
        )
    for was, now in zip(before["samples"], after["samples"], strict=True):
        show_answers(console, now["prompt"], [("before", was["answer"]), ("after", now["answer"])])


def show_answers(console: Console, title: str, answers: list[tuple[str, str]]) -> None:
    """What was asked, then each model's answer on a line or a few."""
    console.print(Text(_on_one_line(title)), no_wrap=True, overflow="ellipsis")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    for name, text in answers:
        table.add_row(f"  {name}", Text(_on_one_line(text)))
    console.print(table)


def _on_one_line(text: str) -> str:
    line = re.sub(r"\s*\n\s*", " ", text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
