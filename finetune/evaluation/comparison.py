"""Compares the answers of the base and of every stage's model.

Answers are greedy and kept as JSON lines, ``answers-<model>.jsonl``, so that a model is asked once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.scratch import Scratch
from hybrid_ft.finetune.recipe.schema import Evaluate, Recipe
from hybrid_ft.finetune.recipe.stages import Questions
from hybrid_ft.finetune.runs.console import say

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.evaluation.statistics import Interval


def check(questions: Questions, first: Recipe) -> None:
    """Raise InputError where the rows cannot be read or asked with the first stage's tokenizer."""
    with _asked(questions, _base_tokenizer(first)):
        pass


def ask_base(questions: Questions, first: Recipe) -> list[dict[str, Any]]:
    """The answers of the model that the first stage starts from."""
    from hybrid_ft.finetune import models
    from hybrid_ft.finetune.runs import device

    tokenizer = _base_tokenizer(first)
    model = models.load_model(first, tokenizer).to(device.kind())
    # a result has the dtype of its training; the base as it is loaded to be trained has not
    with models.arithmetic(first):
        return _answers(questions, model, tokenizer)


def ask(questions: Questions, result: Path) -> list[dict[str, Any]]:
    """The answers of a stage's model, in the order of the rows: source, origin, answer, reference, and whether it is
    exact."""
    from hybrid_ft.finetune.generation.generate import load_for_answers

    model, tokenizer = load_for_answers(str(result))
    return _answers(questions, model, tokenizer)


def _base_tokenizer(first: Recipe) -> PreTrainedTokenizerBase:
    from hybrid_ft.finetune import models
    from hybrid_ft.finetune.data.tokens.arguments import save_arguments
    from hybrid_ft.finetune.data.tokens.encoder import Encoder

    tokenizer = models.load_tokenizer(first)
    template = Encoder.of(first, tokenizer).template
    tokenizer.chat_template = template.text
    save_arguments(tokenizer, template.arguments)
    return tokenizer


def _answers(questions: Questions, model: Any, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    from hybrid_ft.finetune.evaluation import answers as evaluate
    from hybrid_ft.hybrid_model.checkpoint.generation_config import end_tokens

    with _asked(questions, tokenizer) as (rows, sources, template_ends):
        end_ids = end_tokens(model, tokenizer, template_ends)
        wanted = Evaluate(answers=len(rows), max_new_tokens=questions.max_new_tokens)
        answers = evaluate.answer_held_out(model.eval(), tokenizer, rows, end_ids, wanted)
    return [{"source": source, **line} for source, line in zip(sources, answers, strict=True)]


@contextmanager
def _asked(questions: Questions, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Dataset, list[str], list[int]]]:
    """The rows, the source of each, and the tokens with which the template ends an answer."""
    import numpy as np

    from hybrid_ft.finetune.data.supervised import way_of_rows
    from hybrid_ft.finetune.data.token_store import tokenize_sources
    from hybrid_ft.finetune.data.tokens.encoder import Encoder

    encoder = Encoder.of_tokenizer(tokenizer)
    sources = questions.sources
    if texts := [source.path for source in sources if source.format == "text"]:
        raise InputError(
            f"evaluate.sources: {texts[0]}: format: text holds no question that can be asked; leave it out"
        )
    with Scratch() as folder:
        store = tokenize_sources(sources, way_of_rows(questions.data, encoder, texts=False), Path(folder, "rows.arrow"))
        rows = store.dataset(np.arange(len(store)))
        yield rows, [sources[at].path for at in store.source.tolist()], encoder.eos_token_ids


Columns = Sequence[tuple[str, list[dict[str, Any]]]]
"""The models' names, each with its answers."""


def show(console: Console, columns: Columns) -> None:
    """The table; then what has changed from each model to the next, and an answer that did, of each source."""
    from hybrid_ft.finetune.evaluation import answers as evaluate

    for line in show_table(console, columns):
        say(console, line)
    say(console, "in brackets 95 % intervals: Wilson's of a share, of a change paired by row")
    for answers in _by_source(columns).values():
        number = _most_changed(answers)
        titled = [(title, lines[number]["answer"]) for (title, _), lines in zip(columns, answers, strict=True)]
        reference = ("reference", answers[0][number]["reference"])
        evaluate.show_answers(console, answers[0][number]["origin"], [*titled, reference])


def show_table(console: Console, columns: Columns) -> list[str]:
    """A column for each model, a row for each source and measure, with its interval. Returns the changes from each
    model to the next, a line each."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from hybrid_ft.finetune.evaluation import kept_answers, statistics

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for title, _ in columns:
        table.add_column(title, justify="right")
    changes = []
    for source, answers in _by_source(columns).items():
        table.add_row(Path(source).name)
        scores = kept_answers.scores(answers)
        for measure, cells in kept_answers.measures(answers).items():
            table.add_row(f"  {measure}", *cells)
            models, rows = scores[measure]
            clusters = None if len(set(rows)) == len(rows) else rows
            found = [statistics.share(model, clusters) for model in models]
            table.add_row("", *(Text(f"[{100 * one.low:.1f}, {100 * one.high:.1f}]", style="dim") for one in found))
            for number, (before, after) in enumerate(pairwise(models)):
                change = statistics.difference(before, after, clusters=clusters)
                names = f"{columns[number][0]} to {columns[number + 1][0]}"
                changes.append(f"{names}: {Path(source).name}, {measure}: {_in_words(change)}")
    console.print(table)
    return changes


def _by_source(columns: Columns) -> dict[str, list[list[dict[str, Any]]]]:
    """For each source every model's answers to its rows."""
    sources = dict.fromkeys(line["source"] for line in columns[0][1])
    return {
        source: [[line for line in lines if line["source"] == source] for _, lines in columns] for source in sources
    }


def _in_words(change: Interval) -> str:
    if not change.settled:
        return f"no difference seen, at most {100 * change.most:.1f} points"
    return f"{100 * change.value:+.1f} points [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def _most_changed(answers: list[list[dict[str, Any]]]) -> int:
    """The first prompt that the last model answers exactly and the fewest of those before it do."""
    scores = [(rows[-1]["exact"], -sum(row["exact"] for row in rows)) for rows in zip(*answers, strict=True)]
    return scores.index(max(scores))
