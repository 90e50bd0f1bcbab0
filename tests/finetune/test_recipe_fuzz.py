"""Mutated recipes: what comes out is a recipe or a list of one-line mistakes, never a traceback."""

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ft.finetune.recipe import Recipe, load_recipe
from hybrid_ft.finetune.yaml_reader import dump_yaml
from hybrid_ft.hybrid_model.errors import InputError

WHOLE = Recipe.model_validate(
    {
        "model": {"path": "tiny", "lora": {}},
        "data": {"sources": [{"path": "rows.jsonl", "weight": 1.0}], "eval": {"count": 2}},
        "evaluate": {"samples": ["hello"], "every": 3},
        "output": "runs/x",
    }
).model_dump()

VALUES = st.sampled_from(
    [None, True, False, 0, 1, -1, 2**64, 10**299, 1e-5, 1e308, float("inf"), float("nan"), "", "no", "012", "x" * 300, "~/x",
     "../../etc/passwd", "\x1b[31m", "a\nb", [], [[]], [None], {}, {"a": {}}, [{"path": "rows.jsonl"}] * 2, {"path": 1}, "tiny", "7B", "/dev/null"]
) | st.text(max_size=10)  # fmt: skip
KEYS = st.sampled_from(
    ["path", "sources", "eval", "lora", "train", "weight", "every", "", "0", "a.b", "\n", "ключ", "x" * 200]
)


def places(value: Any, loc: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [loc, *(place for key, below in inner for place in places(below, (*loc, key)))]


def change(recipe: dict, loc: tuple, action: str, key: str, value: Any) -> None:
    node: Any = recipe
    for part in loc[:-1]:
        node = node[part]
    if not loc:
        recipe[key] = value
    elif action == "delete":
        del node[loc[-1]]
    elif action == "add" and isinstance(node, dict):
        node[key] = value
    else:
        node[loc[-1]] = value


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


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_changed_values_and_keys(folder: Path, data: st.DataObject) -> None:
    recipe = Recipe.model_validate(WHOLE).model_dump()
    for _ in range(data.draw(st.integers(1, 4))):
        loc = data.draw(st.sampled_from(places(recipe)))
        action, key, value = data.draw(st.sampled_from(["set", "delete", "add"])), data.draw(KEYS), data.draw(VALUES)
        change(recipe, loc, action, key, copy.deepcopy(value))
    overrides = data.draw(
        st.lists(
            st.tuples(st.sampled_from([".".join(map(str, loc)) for loc in places(WHOLE)]), st.text(max_size=6)),
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


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 3), st.sampled_from([b"", b":", b"\t", b"- ", b"[", b"\n", b"\xff", b"&a ", b"*a", b"!!x ", b"'", b"{", b"#", b"\x00", b"  ", b"---\n"])), min_size=1, max_size=4)
)  # fmt: skip
def test_changed_bytes(folder: Path, edits: list[tuple[int, int, bytes]]) -> None:
    text = dump_yaml(WHOLE).encode()
    for where, cut, put in edits:
        where %= len(text)
        text = text[:where] + put + text[where + cut :]
    with pytest.MonkeyPatch.context() as monkeypatch:
        outcome(folder, text, [], monkeypatch)


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=30))
def test_any_override(folder: Path, override: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        outcome(folder, dump_yaml(WHOLE).encode(), [override], monkeypatch)


def test_the_unchanged_recipe_is_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(folder, dump_yaml(WHOLE).encode(), [], monkeypatch) == []
