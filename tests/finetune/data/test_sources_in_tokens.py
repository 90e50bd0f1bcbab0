"""Where tokens are kept, and which."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.finetune.data import kept_tokens, sources_in_tokens
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.sources_in_tokens import cache_folder
from hybrid_ft.finetune.recipe.schema import Recipe

MakeRecipe = Callable[..., Recipe]


@pytest.mark.parametrize(
    ("cache", "output", "variable", "place"),
    [
        (None, "runs/mine", None, "runs/.tokens"),
        (None, "runs/mine", "elsewhere", "elsewhere"),
        ("named", "runs/mine", "elsewhere", "named"),
        (False, "runs/mine", "elsewhere", None),
        (None, None, None, None),
    ],
)
def test_where_they_lie(cache: Any, output: Any, variable: Any, place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sources_in_tokens.VARIABLE, raising=False)
    if variable:
        monkeypatch.setenv(sources_in_tokens.VARIABLE, variable)
    data = {"sources": [{"path": "rows.jsonl"}], "cache": cache}
    recipe = Recipe.model_validate({"model": {"path": "tiny"}, "data": data, "output": output})
    assert cache_folder(recipe) == (None if place is None else Path(place))


def test_what_is_prepared_in_a_moment_is_kept_where_that_is_asked_for(
    write_rows: Callable[..., Path],
    recipe: MakeRecipe,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(sources_in_tokens.VARIABLE, str(tmp_path / "usual"))
    rows = [{"prompt": f"{n}", "completion": "a"} for n in range(20)]
    small, large = write_rows(rows), write_rows([*rows, {"prompt": "x" * 3000, "completion": "a"}], "large.jsonl")
    monkeypatch.setattr(sources_in_tokens, "WORTH_KEEPING", 3000)
    prepare(recipe(small, max_dropped=1.0), tokenizer)
    assert not (tmp_path / "usual").exists()
    prepare(recipe(small, large, max_dropped=1.0), tokenizer)
    assert len(os.listdir(tmp_path / "usual")) == 1
    prepare(recipe(small, max_dropped=1.0, cache=str(tmp_path / "named")), tokenizer)
    assert len(os.listdir(tmp_path / "named")) == 1


def test_a_new_source_leaves_the_others_kept(
    write_rows: Callable[..., Path], recipe: MakeRecipe, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write_rows([{"prompt": f"{n}", "completion": name}] * 3, f"{name}.jsonl") for n, name in enumerate("abc")]
    cache = str(tmp_path / "cache")
    prepare(recipe(*files[:2], cache=cache), tokenizer)
    made: list[Path] = []
    real = kept_tokens.KeptTokens._made
    monkeypatch.setattr(
        kept_tokens.KeptTokens, "_made", lambda *args: made.append(Path(args[1].state[0][0])) or real(*args)
    )
    prepared = prepare(recipe(*files, cache=cache), tokenizer)
    assert made == [files[2]]
    assert prepared.train["origin"] == prepare(recipe(*files, cache=False), tokenizer).train["origin"]
