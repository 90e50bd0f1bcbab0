"""A recipe that names an adapter alone is trained on the adapter's base."""

import json
import re
from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory; the recipe and the adapter lie in ``mine``."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine/first/adapter", "base", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mine/rows.jsonl").write_text("{}\n")
    return tmp_path


def recipe_of(says: object, model: str = "{adapter: first/adapter}") -> str:
    Path("mine/first/adapter/adapter_config.json").write_text(json.dumps(says))
    Path("mine/mine.yaml").write_text(f"model: {model}\ndata:\n  sources: [{{path: rows.jsonl}}]\n")
    return "mine/mine.yaml"


def test_the_base_is_the_adapter_s(folder: Path) -> None:
    base = str(folder / "base")
    recipe = load_recipe(recipe_of({"base_model_name_or_path": base}))
    assert (recipe.model.path, recipe.model.adapter) == (base, "mine/first/adapter") and recipe.model.lora is not None
    resolved = Path("resolved.yaml")
    resolved.write_text(recipe.to_yaml())
    assert load_recipe(resolved) == recipe
    overridden = load_recipe(recipe_of({"base_model_name_or_path": base}, "{}"), ["model.adapter=mine/first/adapter"])
    assert overridden.model.path == base


def test_a_base_of_the_hub_comes_with_its_revision() -> None:
    recipe = load_recipe(recipe_of({"base_model_name_or_path": "someone/base", "revision": "v2"}))
    assert (recipe.model.path, recipe.model.revision) == ("someone/base", "v2")


def test_a_path_that_is_given_stands() -> None:
    path = "{path: other, adapter: first/adapter}"
    assert load_recipe(recipe_of({"base_model_name_or_path": "base"}, path)).model.path == "other"


@pytest.mark.parametrize(
    ("says", "model", "message"),
    [
        ({"base_model_name_or_path": "/gone/base"}, "{adapter: first/adapter}", "where nothing is; set it to where"),
        ({}, "{adapter: first/adapter}", "model.path: left out, and .*adapter_config.json names no base model; set it"),
        ([], "{adapter: first/adapter}", "model.path: left out, and .*adapter_config.json names no base model; set it"),
        (
            {"base_model_name_or_path": "base"},
            "{adapter: no/adapter}",
            "model.adapter: got 'no/adapter'; no such folder",
        ),
        (
            {"base_model_name_or_path": "base"},
            "{adapter: first}",
            "model.adapter: got 'first'; no adapter_config.json in",
        ),
        ({"base_model_name_or_path": "base"}, "{adapter: 3}", "model.path is missing"),
    ],
)
def test_what_names_no_base_is_refused(says: object, model: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_recipe(recipe_of(says, model))
    lines = [line for line in str(refused.value).splitlines() if "model.path" in line]
    assert len(lines) == 1 and re.search(message, lines[0])
