"""What a message advises for columns in no known format: taken from it, and followed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.reading import conversations, judgements, preferences
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.recipe.data_section import Source

READERS = {"rows": conversations, "pairs": preferences, "judged": judgements}


def written(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def message(path: str, kind: str) -> str:
    with pytest.raises(InputError) as error:
        list(READERS[kind](Source(path=path), SourceCounts(path)))
    assert "\n" not in str(error.value)
    return str(error.value)


def advised(text: str) -> dict[str, Any]:
    """The keys that a message says to set, as YAML reads them."""
    match = re.search(
        r"set columns: (.*?)(?: and (roles|labels|preference): (\{.*?\}))?(?: \(unused then: .*?\))?(?:; with (only): (\{.*?\}) .*)?$",
        text,
    )
    assert match, text
    keys = {"columns": yaml.safe_load(match[1])}
    return keys | {match[name]: yaml.safe_load(match[name + 1]) for name in (2, 4) if match[name]}


def follow(tmp_path: Path, rows: list[dict[str, Any]], kind: str = "rows") -> tuple[list[Any], SourceCounts]:
    path = written(tmp_path, rows)
    counts = SourceCounts(path)
    made = READERS[kind](Source.model_validate({"path": path} | advised(message(path, kind))), counts)
    return [item for _, item in made], counts
