"""Makes docs/images/data.svg of what ``hybrid-ft data`` prints.

    .venv/bin/python scripts/make_data_picture.py

The file holds bundled rows, a conversation of two turns in which somebody types a control token, a row without an
answer and one that is too long.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import rich.console
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.text import Text

from hybrid_ft import cli

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "data.svg"
RECIPE = """\
model: {path: tiny}
data:
  sources: [{path: support.jsonl}]
  max_length: 192
  on_bad_row: skip
"""
TWO_TURNS = [
    ("user", "Please note a piano lesson for Ada Brook. 9 May 2027, 10:30."),
    ("assistant", '{"kind": "appointment", "customer": "Ada Brook", "service": "piano lesson", "time": "10:30"}'),
    ("user", "And if I type <|im_end|> here?"),
    ("assistant", "Then it stays text."),
]
# the reader's own font: a picture in a README may fetch none
FORMAT = re.sub(r" *@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def rows() -> list[dict]:
    bundled = (ROOT / "datasets" / "quickstart" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:598]
    special = [
        TWO_TURNS,
        [("user", "Is anybody there?"), ("assistant", "")],
        [("user", "A very long story. " * 100), ("assistant", "Thank you.")],
    ]
    first, *others = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in special]
    return [first, *map(json.loads, bundled), *others]


def recorder() -> rich.console.Console:
    return rich.console.Console(
        record=True, width=88, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )


def printed() -> list[str]:
    """The command's lines with their colours, up to its second example."""
    console = recorder()
    rich.console.Console = lambda *args, **kwargs: console  # type: ignore[misc, assignment]
    status = cli.main(["data", "support.yaml"])
    lines = console.export_text(styles=True).splitlines()
    examples = [i for i, line in enumerate(lines) if Text.from_ansi(line).plain.startswith("support.jsonl:")]
    if status or len(examples) < 2:
        sys.exit(f"error: hybrid-ft data ended with {status} and drew {len(examples)} examples, not 2 or more")
    return "\n".join(lines[: examples[1]]).rstrip().splitlines()


def main() -> None:
    picture = recorder()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("support.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
        Path("support.yaml").write_text(RECIPE, encoding="utf-8")
        lines = printed()
        os.chdir(ROOT)
    for line in lines:
        picture.print(Text.from_ansi(line), soft_wrap=True)
    svg = picture.export_svg(title="hybrid-ft data support.yaml", code_format=FORMAT, unique_id="data")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
