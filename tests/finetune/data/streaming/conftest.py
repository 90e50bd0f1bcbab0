"""Streams of small files."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from hybrid_ft.finetune.data.streaming.windows import RowStream
from hybrid_ft.finetune.data.supervised import way_of_rows
from hybrid_ft.finetune.data.tokens.encoder import Encoder


@pytest.fixture
def stream(tokenizer: Any) -> Callable[[Any], RowStream]:
    """``stream(recipe)``: from its beginning."""

    def made(recipe: Any) -> RowStream:
        return RowStream(recipe, way_of_rows(recipe.data, Encoder.of(recipe, tokenizer)), texts=True)

    return made


@pytest.fixture
def questions(write_rows: Any) -> Callable[..., Any]:
    """``questions("a.jsonl", 300)``: a file of questions and answers, each of some words."""

    def written(name: str, rows: int, first: int = 0) -> Any:
        chance = random.Random(name)
        words = ["one", "two", "three", "four", "five", "six", "seven"]
        made = [
            {
                "prompt": f"{name} {number} " + " ".join(chance.choices(words, k=chance.randint(1, 9))),
                "completion": " ".join(chance.choices(words, k=chance.randint(1, 9))),
            }
            for number in range(first, first + rows)
        ]
        return write_rows(made, name)

    return written
