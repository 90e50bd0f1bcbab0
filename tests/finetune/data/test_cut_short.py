"""Of a file that cannot be read to its end the bad rows before that place are named first, however
its rows are read."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.streaming.prepared import prepare
from hybrid_ft.finetune.recipe.schema import Recipe

ROWS = 40
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "rows": ("", {"completion": "yes"}, "completion is null"),
    "pairs": ("dpo", {"chosen": "yes", "rejected": "no"}, "chosen is null"),
    "pairs for a reward model": ("reward", {"chosen": "yes", "rejected": "no"}, "chosen is null"),
    "pairs taken apart": ("kto", {"chosen": "yes", "rejected": "no"}, "chosen is null"),
    "judged answers": ("kto", {"completion": "yes", "label": True}, "completion is null"),
    "judged answers joined to pairs": ("dpo", {"completion": "yes", "label": True}, "completion is null"),
    "lists of answers": ("dpo", {"responses": ["yes", "no"], "scores": [2, 1]}, "responses: got null"),
}
"""The recipe's section of each, a row, and what is said of one whose first column is null."""
STREAMED = ("rows", "pairs", "pairs for a reward model", "lists of answers")


def refused(path: Path, kind: str, streaming: bool, tokenizer: Any) -> str:
    section = KINDS[kind][0]
    raw: dict[str, Any] = {
        "model": {"path": "tiny"},
        "data": {"sources": [{"path": str(path)}], "streaming": streaming},
    }
    raw |= {"train": {"steps": 5}} if streaming else {}
    raw |= {section: {}} if section else {}
    with pytest.raises(InputError) as error:
        prepare(Recipe.model_validate(raw), tokenizer)
    return str(error.value)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("kind", "streaming"), [*((kind, False) for kind in KINDS), *((kind, True) for kind in STREAMED)]
)
def test_the_bad_row_is_named(kind: str, streaming: bool, packed: bool, tokenizer: Any, tmp_path: Path) -> None:
    _, values, said = KINDS[kind]
    noise = random.Random(0)
    rows = [{**values, "prompt": f"{number}", "noise": f"{noise.getrandbits(4000):x}"} for number in range(ROWS)]
    rows[2][next(iter(values))] = None
    text = "[" + ",\n".join(map(json.dumps, rows)) + "]"
    path = tmp_path / ("rows.json.gz" if packed else "rows.json")
    path.write_bytes(gzip.compress(text.encode())[:-200] if packed else text[:-200].encode())
    found = refused(path, kind, streaming, tokenizer)
    assert found.startswith(f"{path}:3: {said}; ")
    assert found.endswith(f"; 1 bad row of {ROWS - 1}. Fix it, or set data.on_bad_row: skip")
