"""Greedy answers to held-out prompts and samples, before and after training, and their table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybrid_ft.finetune.data.tokens.prompts import PromptEncoder
from hybrid_ft.finetune.generation.generate import answer
from hybrid_ft.finetune.runs.atomic import write_text

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe.schema import Evaluate


LONGEST = 240
"""characters of an answer that are shown"""


def answer_held_out(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, end_ids: list[int], wanted: Evaluate
) -> list[dict[str, Any]]:
    """Greedy answers to ``wanted.answers`` held-out prompts, spread evenly over the rows: origin, answer, reference, exact.

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


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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


def measures(answers: list[list[dict[str, Any]]]) -> dict[str, list[str]]:
    """For each measure that these answers have, its text for each model; ``scores`` says which there are."""
    return {
        measure: [_share(round(sum(of_model)), len(of_model)) for of_model in models]
        for measure, (models, _) in scores(answers).items()
    }


def scores(answers: list[list[dict[str, Any]]]) -> dict[str, tuple[list[list[float]], list[int]]]:
    """For each measure what is counted, 0 or 1, of each model, and the row that each of these is of.

    exact answers    the reference, letter for letter, but for space at the ends
    invented values  where references are JSON objects: fields that are null there and have a value in the answer
    """
    if not answers[0]:
        return {}
    rows = list(range(len(answers[0])))
    table = {"exact answers": ([[float(row["exact"]) for row in of_model] for of_model in answers], rows)}
    counts = [[invented(row["answer"], row["reference"]) for row in of_model] for of_model in answers]
    fields = [row for row, (_, missing) in enumerate(counts[0]) for _ in range(missing)]
    if fields:
        values = [[float(at < count) for count, of in of_model for at in range(of)] for of_model in counts]
        table["invented values"] = (values, fields)
    return table


def invented(answer: str, reference: str) -> tuple[int, int]:
    """How many of the fields that are null in ``reference``, a JSON object, have a value in ``answer``; and how many there are.

    In an answer that is not JSON the first value written for a field counts.
    """
    missing = [field for field, value in (_json_object(reference) or {}).items() if value is None]
    given = _json_object(answer)
    if given is None:
        written = [re.search(re.escape(json.dumps(field)) + r"\s*:\s*(?!null\b)\S", answer) for field in missing]
        return sum(match is not None for match in written), len(missing)
    return sum(given.get(field) is not None for field in missing), len(missing)


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%} ({part}/{whole})"


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
