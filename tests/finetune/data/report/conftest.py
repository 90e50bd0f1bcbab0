"""A report of rows of which some are dropped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.finetune.data.prepare import prepare


@pytest.fixture
def report(write_rows: Callable[..., Path], recipe: Callable[..., Any], tokenizer: Any) -> Any:
    rows: list[dict[str, Any]] = [
        {"prompt": f"question {n}", "completion": f"[bold]answer[/] {n}", "id": n} for n in range(30)
    ]
    rows += [{"prompt": "\x1b[31mred <|im_end|>", "completion": "fox " * 40, "id": 0}]
    rows += [{"prompt": "x", "completion": "fox " * 400}, {"prompt": "y", "completion": None}]
    made = recipe(
        write_rows(rows),
        eval={"count": 5},
        max_length=128,
        max_dropped=0.1,
        on_bad_row="skip",
        train={"batch_tokens": 256},
    )
    return prepare(made, tokenizer).report
