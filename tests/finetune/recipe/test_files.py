"""Where a recipe's paths are looked for."""

import os
from pathlib import Path

import pytest
from recipe_files import MINIMAL, write

from hybrid_ft.finetune.recipe.load import load_recipe

pytestmark = pytest.mark.usefixtures("folder")


def test_paths_beside_the_recipe_and_from_the_current_directory(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "near.jsonl").write_text("{}\n")
    (folder / "sub" / "rows.jsonl").write_text("{}\n")
    text = MINIMAL + "    - path: near.jsonl\n    - path: someone/dataset\n"
    paths = [source.path for source in load_recipe(write(text, "sub/mine.yaml")).data.sources]
    assert paths == ["rows.jsonl", os.path.join("sub", "near.jsonl"), "someone/dataset"]
