"""A stream's sample: its first rows by source, what its account says, and what a run refuses."""

from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.streaming import prepared as module
from hybrid_ft.finetune.data.streaming.prepared import prepare

TRAIN = {"steps": 5, "batch_tokens": 128}


def test_the_sample_is_ordered_by_source_and_its_packs_follow(
    recipe: Any, questions: Any, tokenizer: Any, stream: Any
) -> None:
    files = [questions("a.jsonl", 40), questions("b.jsonl", 40)]
    made = recipe(*files, train=TRAIN, streaming=True, max_length=128, eval={"fraction": 0.2})
    found = prepare(made, tokenizer)
    origins = [origin.rpartition(":")[0] for origin in found.train["origin"]]
    assert origins == sorted(origins) and len(set(origins)) == 2
    window = next(stream(made).windows())
    assert found.packs is not None and found.eval_packs is not None
    assert [[found.train["origin"][row] for row in one] for one in found.packs] == [
        [window.rows[row].origin for row in one] for one in window.packs
    ]
    assert sorted(row for one in found.eval_packs for row in one) == list(range(len(found.eval)))
    assert not {*found.eval["origin"]} & {*found.train["origin"]}


def test_no_more_rows_are_looked_at_than_a_sample_has(
    recipe: Any, questions: Any, tokenizer: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "SAMPLE", 16)
    made = recipe(questions("a.jsonl", 900), train=TRAIN, streaming=True, max_length=128)
    found = prepare(made, tokenizer)
    read = found.report.sources[0].read
    assert len(found.train) <= read < 300
    assert found.report.sample.startswith(f"a sample, the first {read} rows of a stream")


def test_too_many_dropped_rows_are_refused_as_of_the_first_rows_or_only_told(
    recipe: Any, write_rows: Any, tokenizer: Any
) -> None:
    rows = [{"prompt": f"q {n}", "completion": "" if n % 2 else "a"} for n in range(60)]
    made = recipe(
        write_rows(rows, "a.jsonl"), train=TRAIN, streaming=True, max_length=128, max_dropped=0.1, on_bad_row="skip"
    )
    with pytest.raises(InputError, match=r"\(of the stream's first rows\)$"):
        prepare(made, tokenizer)
    told = prepare(made, tokenizer, refuse=False)
    assert told.report.refusal and len(told.train) == 30
