"""One source read as it comes: what is refused of it before a row is trained on."""

from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.prepare import prepare as whole
from hybrid_ft.finetune.data.streaming import source_stream as module
from hybrid_ft.finetune.data.streaming.prepared import prepare

ROWS = [{"prompt": f"question {number}", "completion": "a", "skip": "no"} for number in range(200)]


def refused(recipe: Any, tokenizer: Any, prepare: Any) -> str:
    with pytest.raises(InputError) as error:
        prepare(recipe, tokenizer)
    return str(error.value)


def test_a_mistyped_column_of_without_is_refused_as_of_rows_read_whole(
    write_rows: Any, recipe: Any, tokenizer: Any
) -> None:
    source = {"path": str(write_rows(ROWS, "a.jsonl")), "without": {"skpi": "yes"}}
    of_stream = recipe(source, streaming=True, train={"steps": 2})
    text = refused(of_stream, tokenizer, prepare)
    assert text == refused(recipe(source), tokenizer, whole)
    assert "without: no column skpi; did you mean skip? (found prompt, completion, skip)" in text


def test_a_column_of_without_may_come_late_but_not_behind_what_is_looked_at(
    write_rows: Any, recipe: Any, tokenizer: Any, monkeypatch: Any
) -> None:
    rows = [{name: row[name] for name in ("prompt", "completion")} for row in ROWS[:-1]]
    source = {"path": str(write_rows([*rows, ROWS[-1] | {"skip": "yes"}], "a.jsonl")), "without": {"skip": "yes"}}
    made = recipe(source, streaming=True, train={"steps": 2})
    counts = prepare(made, tokenizer).report.sources[0]
    assert (counts.read, counts.passed_over) == (199, 1)
    monkeypatch.setattr(module, "_LOOKED_AT", 128)
    assert refused(made, tokenizer, prepare).endswith(
        "no column skip (found prompt, completion) in the first 128 rows of the stream"
    )
