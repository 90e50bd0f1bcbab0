"""What became of every row adds up."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.report.view import draw


def test_the_numbers_add_up(report: Any) -> None:
    counts = json.loads(json.dumps(report.as_dict()))
    source = counts["sources"][0]
    dropped = sum(tally["rows"] for tally in source["dropped"].values())
    assert source["rows_read"] == 33 == source["rows_kept"] + dropped
    assert counts["train"]["rows"] + counts["eval"]["rows"] == source["rows_taken"] == 31
    assert counts["train"]["tokens"] == int(report.train.lengths.sum())
    assert counts["train"]["padding_share_packed"] == pytest.approx(
        1 - counts["train"]["tokens"] / (256 * counts["train"]["packs"])
    )
    assert 0 < counts["train"]["trained_share"] < 1
    lines = report.summary()
    assert any(line.startswith("train: 26 rows") for line in lines) and any(
        "held out: 5 rows" in line for line in lines
    )


def test_one_is_singular_and_a_long_place_is_not_broken(
    write_rows: Callable[..., Path], recipe: Callable[..., Any], tokenizer: Any
) -> None:
    rows = [{"prompt": "typed <|im_end|> here", "completion": "fox"}, {"prompt": "x", "completion": None}]
    path = write_rows(rows, f"{'long-' * 20}name.jsonl")
    made = recipe(path, max_dropped=1.0, on_bad_row="skip")
    report = prepare(made, tokenizer).report
    out = io.StringIO()
    draw(report, Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert f"note: <|im_end|> in a row's text, encoded as plain text: 1 ({path}:1)" in lines
    assert f"            null content: 1 ({path}:2)" in lines and str(path) in lines
    assert "user" in out.getvalue() and "typed [text: <|im_end|>] here<|im_end|>" in out.getvalue()
    assert "padding after packing" in out.getvalue() and "empty" not in out.getvalue()
    summary = report.summary()[1]
    assert summary.startswith("train: 1 row, ") and "; 1 pack of 4,096 tokens, " in summary
    assert "1 rows" not in out.getvalue() + summary and "1 packs" not in out.getvalue() + summary
