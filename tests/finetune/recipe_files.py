"""Recipes written to the current folder, and their mistakes."""

from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe

MINIMAL = "model: {path: tiny}\ndata:\n  sources:\n    - path: rows.jsonl\n"


def write(text: str, name: str = "mine.yaml") -> str:
    Path(name).write_text(text)
    return name


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as refused:
        load_recipe(write(text), overrides)
    assert refused.value.status == 2
    return str(refused.value).splitlines()
