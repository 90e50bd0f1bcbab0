"""A recipe's name is its path below recipes/, and nothing else."""

from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.shipped import RECIPES, find_recipe, recipe_names


@pytest.mark.parametrize("form", ["{}", "{}.yaml", "recipes/{}", "recipes/{}.yaml"])
def test_every_shipped_recipe_has_one_name(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # a folder of that name is in nobody's way
    assert {"quickstart", "quickstart/sft", "gsm8k/tiny"} <= set(recipe_names())
    for name in recipe_names():
        assert find_recipe(form.format(name)) == RECIPES / f"{name}.yaml"


def test_a_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").touch()
    assert find_recipe("quickstart") == Path("quickstart")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gsm8k", "gsm8k: no such recipe file, .*; did you mean gsm8k/tiny?"),
        ("instruct-sft", ".*; did you mean olmo-hybrid-7b/instruct-sft?"),
        ("quickstart/sfd", ".*; did you mean quickstart/sft?"),
        ("mine.yaml", "mine.yaml: no such recipe file, and no shipped recipe has that name$"),
    ],
)
def test_other_names_are_refused(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        find_recipe(name)
