"""Mutated recipes: what comes out is a recipe or a list of one-line mistakes, never a traceback."""

import copy
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2] / "faults"))  # pytest imports a test file by its path

from mutated_recipes import KEYS, PIECES, VALUES, WHOLE, change
from mutations import paths_in

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.recipe.yaml_file import dump_yaml


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "rows.jsonl").write_text("{}\n")
    return folder


def outcome(folder: Path, text: bytes, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The mistakes, after checking that each is one printable line that begins with where it is."""
    (folder / "r.yaml").write_bytes(text)
    monkeypatch.chdir(folder)
    try:
        recipe = load_recipe("r.yaml", overrides)
    except InputError as error:
        lines = str(error).split("\n")
        assert lines
        assert all(line.startswith(("r.yaml:", "override ")) and line.isprintable() for line in lines)
        assert str(error).splitlines() == lines
        return lines
    assert Recipe.model_validate(recipe.model_dump()) == recipe
    return []


@settings(max_examples=50)
@given(st.data())
def test_changed_values_and_keys(folder: Path, data: st.DataObject) -> None:
    recipe = Recipe.model_validate(WHOLE).model_dump()
    for _ in range(data.draw(st.integers(1, 4))):
        loc = data.draw(st.sampled_from(paths_in(recipe)))
        action, key, value = data.draw(st.sampled_from(["set", "delete", "add"])), data.draw(KEYS), data.draw(VALUES)
        change(recipe, loc, action, key, copy.deepcopy(value))
    overrides = data.draw(
        st.lists(
            st.tuples(st.sampled_from([".".join(map(str, loc)) for loc in paths_in(WHOLE)]), st.text(max_size=6)),
            max_size=2,
        )
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        outcome(
            folder,
            dump_yaml(recipe).encode(errors="replace"),
            [f"{key}={value}" for key, value in overrides],
            monkeypatch,
        )


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 3), st.sampled_from(PIECES)), min_size=1, max_size=4)
)  # fmt: skip
def test_changed_bytes(folder: Path, edits: list[tuple[int, int, bytes]]) -> None:
    text = dump_yaml(WHOLE).encode()
    for where, cut, put in edits:
        where %= len(text)
        text = text[:where] + put + text[where + cut :]
    with pytest.MonkeyPatch.context() as monkeypatch:
        outcome(folder, text, [], monkeypatch)


@settings(max_examples=80)
@given(st.text(max_size=30))
def test_any_override(folder: Path, override: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        outcome(folder, dump_yaml(WHOLE).encode(), [override], monkeypatch)


def test_the_unchanged_recipe_is_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(folder, dump_yaml(WHOLE).encode(), [], monkeypatch) == []
