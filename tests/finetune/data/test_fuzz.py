"""Mutated files never end in anything but rows or one line of complaint."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2] / "faults"))  # pytest imports a test file by its path

from mutations import ROWS, mutated

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.sources.rows import BadRow, Row
from hybrid_ft.finetune.recipe.schema import changed

# one of the whole rows, with one to three of its values changed
MUTATED = st.sampled_from(ROWS).flatmap(mutated)


def test_mutated_rows(tmp_path: Path, recipe: Callable[..., Any], tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"

    @settings(max_examples=40)
    @given(st.lists(MUTATED, min_size=1, max_size=3), st.integers(0, len(ROWS) - 1), st.sampled_from(["error", "skip"]))
    def check(rows: list[Any], form: int, on_bad_row: str) -> None:
        # the first row is whole, so that the form is known
        path.write_text("".join(json.dumps(row) + "\n" for row in [ROWS[form], *rows]))
        made = recipe(path, on_bad_row=on_bad_row, max_dropped=1.0)
        made = changed(made, "model", chat_template="olmo-instruct")
        try:
            prepared = prepare(made, tokenizer)
        except InputError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            return
        for row in prepared.train:
            assert any(label != -100 for label in row["labels"])
        counts = prepared.report.sources[0]
        assert counts.read == len(rows) + 1 == counts.kept + counts.dropped.count

    check()


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
def test_mutated_bytes(suffix: str, tmp_path: Path, rows_of: Callable[..., list[Any]]) -> None:
    if suffix in (".csv", ".tsv"):
        whole = b'a,b\tc\n"x ""y""\nz",2\n3,4\n' * 3
    elif suffix == ".json":
        whole = json.dumps(ROWS, indent=1).encode()
    else:
        whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    noise = random.Random(0)
    path = tmp_path / f"rows{suffix}"
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(noise.randint(1, 4)):
            at = noise.randrange(len(content))
            kind = noise.randrange(4)
            if kind == 0:
                content[at] = noise.randrange(256)
            elif kind == 1:
                del content[at : at + noise.randrange(1, 30)]
            elif kind == 2:
                content[at:at] = noise.choice([b"[" * 300, b'"', b"\n", b"\xff\xfe", b"\0", b"NaN", b"\\ud800", b"{}"])
            else:
                content = content[: at + 1]
        path.write_bytes(bytes(content))
        try:
            rows = rows_of(path)
        except InputError as error:
            assert "\n" not in str(error) and str(error).startswith(str(path))
            continue
        lines = bytes(content).count(b"\n") + 1
        for row in rows:
            assert isinstance(row, Row | BadRow) and 1 <= row.line <= lines
