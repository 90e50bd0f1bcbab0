"""The report's screen."""

import io
from typing import Any

from rich.console import Console

from hybrid_ft.finetune.data.report.view import draw, plain


def screen(report: Any, **console: Any) -> str:
    out = io.StringIO()
    draw(report, Console(file=out, width=300, **console))
    return out.getvalue()


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


def test_text_cannot_move_the_cursor() -> None:
    assert plain("a\x1b[2J\x9b1m\r\u202eb\tc\nd") == "a\\x1b[2J\\x9b1m\\x0d\\x202eb\tc\nd"
    assert plain("日本 é 👩\u200d💻") == "日本 é 👩\u200d💻"
