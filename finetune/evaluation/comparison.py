"""The same prompts asked of the base and of every stage's model, and the table of what came back.

In a file of stages:

    evaluate:
      sources: [held-out.jsonl]      # as in a recipe's data.sources, or plain paths
      max_new_tokens: 256

Answers are greedy and kept as JSON lines, ``answers-<model>.jsonl``, so that a model is asked once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.recipe.load import resolve_recipe
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.recipe.yaml_file import YamlFile

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

STAND_IN = "tiny"
"""a path that passes every check, where a recipe's model is not known yet or is of no matter"""
_KEYS = ("sources", "max_new_tokens")


def load_questions(text: YamlFile, file: Path) -> Recipe | None:
    """The section ``evaluate`` as a recipe that only asks; None where there is none.

    Raises InputError with one line per mistake.
    """
    if text.value.get("evaluate") is None:
        return None
    entry, line = text.value["evaluate"], text.lines["evaluate",]
    if not isinstance(entry, dict) or entry.keys() - {*_KEYS} or not isinstance(entry.get("sources"), list):
        raise InputError(f"{file}:{line}: evaluate: got {shown(entry)}; it has sources, a list, and max_new_tokens")
    sources = [{"path": source} if isinstance(source, str) else source for source in entry["sources"]]
    raw: dict[str, Any] = {"model": {"path": STAND_IN}, "data": {"sources": sources, "packing": False}}
    lines: dict[Any, int] = {("data", *loc[1:]): at for loc, at in text.lines.items() if loc[:1] == ("evaluate",)}
    for number, _ in enumerate(sources):
        lines.setdefault(("data", "sources", number, "path"), text.lines["evaluate", "sources", number])
    if "max_new_tokens" in entry:
        raw["evaluate"] = {"max_new_tokens": entry["max_new_tokens"]}
        lines["evaluate", "max_new_tokens"] = text.lines["evaluate", "max_new_tokens"]
    try:
        return resolve_recipe(YamlFile(raw, lines, []), file)
    except InputError as error:
        raise InputError(str(error).replace("data.sources", "evaluate.sources")) from None


def check(questions: Recipe, first: Recipe) -> None:
    """Raise InputError where the rows cannot be read or asked with the first stage's tokenizer."""
    with _asked(questions, _base_tokenizer(first)):
        pass


def ask_base(questions: Recipe, first: Recipe) -> list[dict[str, Any]]:
    """The answers of the model that the first stage starts from."""
    from hybrid_ft.finetune import models
    from hybrid_ft.finetune.runs import device

    tokenizer = _base_tokenizer(first)
    model = models.load_model(first, tokenizer).to(device.kind())
    # a result has the dtype of its training; the base as it is loaded to be trained has not
    with models.arithmetic(first):
        return _answers(questions, model, tokenizer)


def ask(questions: Recipe, result: Path) -> list[dict[str, Any]]:
    """The answers of a stage's model, in the order of the rows: source, origin, answer, reference, and whether it is exact."""
    from hybrid_ft.finetune.generation.generate import load_for_answers

    model, tokenizer = load_for_answers(str(result))
    return _answers(questions, model, tokenizer)


def _base_tokenizer(first: Recipe) -> PreTrainedTokenizerBase:
    from hybrid_ft.finetune import models
    from hybrid_ft.finetune.data.prepare import template_text

    tokenizer = models.load_tokenizer(first)
    tokenizer.chat_template = template_text(first.model.chat_template, tokenizer)[0]
    return tokenizer


def _answers(questions: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    from hybrid_ft.finetune.evaluation import answers as evaluate
    from hybrid_ft.hybrid_model.checkpoint.generation_config import end_tokens

    with _asked(questions, tokenizer) as (rows, sources, template_ends):
        end_ids = end_tokens(model, tokenizer, template_ends)
        wanted = questions.evaluate.model_copy(update={"answers": len(rows)})
        answers = evaluate.answer_held_out(model.eval(), tokenizer, rows, end_ids, wanted)
    return [{"source": source, **line} for source, line in zip(sources, answers, strict=True)]


@contextmanager
def _asked(questions: Recipe, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Dataset, list[str], list[int]]]:
    """The rows, the source of each, and the tokens with which the template ends an answer."""
    import numpy as np

    from hybrid_ft.finetune.data.pool import read_pool
    from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
    from hybrid_ft.finetune.data.tokens.template import ChatTemplate

    control = ControlTokens(tokenizer)
    template = ChatTemplate(str(tokenizer.chat_template), "(the tokenizer's own)", tokenizer, control)
    sources = questions.data.sources
    with tempfile.TemporaryDirectory(prefix="hybrid-ft-", ignore_cleanup_errors=True) as folder:
        pool = read_pool(sources, questions.data, template, control, Path(folder, "rows.arrow"), held_out=True)
        rows = pool.rows(np.arange(len(pool.lengths)), held_out=True)
        yield rows, [sources[at].path for at in pool.source.tolist()], template.end_ids


def show(console: Console, columns: Sequence[tuple[str, list[dict[str, Any]]]]) -> None:
    """A table: a column for each model, a row for each source and measure; below it an answer that changed, of each source."""
    from rich import box
    from rich.table import Table

    from hybrid_ft.finetune.evaluation import answers as evaluate

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for title, _ in columns:
        table.add_column(title, justify="right")
    sources = list(dict.fromkeys(line["source"] for line in columns[0][1]))
    parts = {
        source: [[line for line in lines if line["source"] == source] for _, lines in columns] for source in sources
    }
    for source, answers in parts.items():
        table.add_row(Path(source).name)
        for measure, cells in evaluate.measures(answers).items():
            table.add_row(f"  {measure}", *cells)
    console.print(table)
    for answers in parts.values():
        number = _most_changed(answers)
        titled = [(title, lines[number]["answer"]) for (title, _), lines in zip(columns, answers, strict=True)]
        reference = ("reference", answers[0][number]["reference"])
        evaluate.show_answers(console, answers[0][number]["origin"], [*titled, reference])


def _most_changed(answers: list[list[dict[str, Any]]]) -> int:
    """The first prompt that the last model answers exactly and the fewest of those before it do."""
    scores = [(rows[-1]["exact"], -sum(row["exact"] for row in rows)) for rows in zip(*answers, strict=True)]
    return scores.index(max(scores))
