"""Leaves rows out that hold what an evaluation asks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.grams import Questions
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.messages.text_of import text_of
from hybrid_ft.finetune.data.reading import conversations
from hybrid_ft.finetune.data.report.account import IN_A_TEST, SourceCounts
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.recipe.data_section import Source
from hybrid_ft.finetune.recipe.files import Files
from hybrid_ft.finetune.recipe.shipped import EVALUATIONS, evaluation_names
from hybrid_ft.finetune.recipe.yaml_file import read_yaml

if TYPE_CHECKING:
    from hybrid_ft.finetune.data.way import Way
    from hybrid_ft.finetune.recipe.schema import Recipe


def decontaminated(way: Way[Any, Any], recipe: Recipe) -> Way[Any, Any]:
    """The way of a recipe's rows, on which rows to train on that hold a question of ``data.decontaminate`` are dropped.

    Held-out files stay as they are. Raises InputError for tasks and files that cannot be read.
    """
    if not recipe.data.decontaminate:
        return way
    places: list[str] = []
    texts: list[str] = []
    for name in recipe.data.decontaminate:
        for place, text in _asked(name):
            places.append(place)
            texts.append(text)
    questions, trained = Questions(texts), recipe.data.sources

    def convert(source: Source, counts: SourceCounts, wanted: np.ndarray | None = None) -> Iterator[tuple[str, Any]]:
        rows = way.convert(source, counts, wanted)
        return sift(rows) if any(source is one for one in trained) else rows

    def sift(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for origin, row in rows:
            met = [] if isinstance(row, BadRow | Unusable) else questions.met_in(text_of(row))
            if met:
                yield origin, Unusable(IN_A_TEST, f"holds half of the runs of eight words of {places[min(met)]}")
            else:
                yield origin, row

    decides = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return replace(way, convert=convert, sift=sift, decides=decides)


def _asked(name: str) -> Iterator[tuple[str, str]]:
    """Where each question of a task or a file of rows stands, and its text: the last turn before the answer."""
    source = _rows_of(name)
    some, why = False, ""
    try:
        for place, row in conversations(source, SourceCounts(source.path)):
            if isinstance(row, Conversation) and len(row.messages) > 1:
                some = True
                yield place, str(row.messages[-2]["content"])
            elif isinstance(row, BadRow):
                why = why or f" ({place}: {row})"
    except InputError as error:
        if source.path != name or "columns" not in str(error):
            raise
        # a name alone has no place for them
        task = f"data.decontaminate: name a YAML file with rows: {{path: {name}, columns: ...}} instead"
        raise InputError(f"{error}; {task}", error.status) from None
    if not some:
        raise InputError(f"data.decontaminate: {name}: no row of it asks anything{why}; mend its rows or their columns")


def _rows_of(name: str) -> Source:
    shipped = name in evaluation_names()
    file = EVALUATIONS / f"{name}.yaml" if shipped else Path(name)
    if file.suffix not in (".yaml", ".yml"):
        return Source(path=name)
    rows = read_yaml(file, "task", "rows:, evaluator:").value.get("rows")
    try:
        source = Source.model_validate({"path": rows} if isinstance(rows, str) else rows)
    except ValidationError:
        raise InputError(f"data.decontaminate: {name}: must be a task with rows:, keys as in data.sources") from None
    files = Files(file.parent)
    [found] = files.sources([source], ("rows",))
    if files.wrongs:
        raise InputError(f"data.decontaminate: {name}: {files.wrongs[0].text}")
    return found
