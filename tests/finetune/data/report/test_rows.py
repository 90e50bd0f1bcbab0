"""The account of the data, read off the screen."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.report.view import draw, histogram, plain


def screen(report: Any, **console: Any) -> str:
    out = io.StringIO()
    draw(report, Console(file=out, width=300, **console))
    return out.getvalue()


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


def test_the_screen_says_it_all(report: Any) -> None:
    text = screen(report)
    for part in (
        "rows.jsonl",
        "prompt-completion: prompt is the user's turn, completion the assistant's",
        "unused    id",
        "33 read, 31 usable",
        "longer than data.max_length: 1 (",
        "null content: 1 (",
        ":33)",
        "held out",
        "packs of 256",
        "tokens per row",
        "█",
        "<|im_end|> in a row's text, encoded as plain text: 1",
        "question 0<|im_end|>",
        "【[bold]answer[/] 0<|im_end|>】",
    ):
        assert part in text, part
    assert "\x1b" not in text


def test_colour_marks_what_is_learned(report: Any) -> None:
    text = screen(report, force_terminal=True, color_system="standard")
    assert "\x1b[1;32m【[bold]answer[/] 0<|im_end|>】" in text


def test_a_console_without_line_art(report: Any) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    draw(report, Console(file=out, width=100))
    out.flush()
    assert b"####" in out.buffer.getvalue()  # type: ignore[attr-defined]


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


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 70_000), min_size=1, max_size=50))
def test_histogram_counts_every_row(lengths: list[int]) -> None:
    rows = histogram(np.array(lengths))
    assert sum(count for _, count, _ in rows) == len(lengths) and len(rows) <= 20
    assert max(width for *_, width in rows) == 40
    assert all((width > 0) == (count > 0) for _, count, width in rows)


def test_a_gap_in_the_histogram_is_one_line() -> None:
    rows = histogram(np.array([84, 103]))
    assert [(label, count) for label, count, _ in rows] == [("84 to 85", 1), ("86 to 101", 0), ("102 to 103", 1)]
    assert histogram(np.array([3, 3, 4]))[-1][0] == "4" and histogram(np.array([7]))[0][0] == "7"


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


def test_text_cannot_move_the_cursor() -> None:
    assert plain("a\x1b[2J\x9b1m\r\u202eb\tc\nd") == "a\\x1b[2J\\x9b1m\\x0d\\x202eb\tc\nd"
    assert plain("日本 é 👩\u200d💻") == "日本 é 👩\u200d💻"
