"""Whatever changes a row's tokens or its account changes the key, and nothing else does."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.finetune.data import token_key
from hybrid_ft.finetune.data.tokens.encoder import Encoder
from hybrid_ft.finetune.recipe.schema import Recipe

ROWS = "".join(f'{{"prompt": "{n}", "completion": "a"}}\n' for n in range(5))
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"


@pytest.fixture
def name_of(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., str]:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "own.jinja").write_text(CHATML)
    (tmp_path / "own.yaml").write_text("columns: {prompt: prompt, completion: completion}\n")

    def of(source: Any = (), columns: Any = ("input_ids",), tokenizer: Any = tiny_tokenizer, **sections: Any) -> str:
        rows = {"path": str(tmp_path / "rows.jsonl")} | dict(source)
        raw = {"model": {"path": "tiny", "from_scratch": True}} | sections
        raw["data"] = {"sources": [rows]} | raw.get("data", {})
        recipe = Recipe.model_validate(raw)
        parts = token_key.recipe_parts(recipe, Encoder.of(recipe, tokenizer))
        key = token_key.source_key(recipe.data.sources[0], parts, columns)
        assert key is not None
        return key.name

    return of


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"max_length": 77}},
        {"data": {"on_long_row": "cut"}},
        {"data": {"on_bad_row": "skip"}},
        {"data": {"reasoning": "drop"}},
        {"data": {"train_empty_thoughts": False}},
        {"dpo": {}},
        {"kto": {}},
        {"model": {"path": "tiny", "from_scratch": True, "chat_template": "own.jinja"}},
        {"source": {"split": "train[:3]"}},
        {"source": {"format": "prompt-completion"}},
        {"source": {"columns": {"file": "own.yaml"}}},
        {"source": {"only": {"prompt": "1"}}},
        {"source": {"without": {"prompt": "1"}}},
        {"columns": ("input_ids", "answer")},
    ],
    ids=str,
)
def test_what_the_recipe_says(
    change: dict[str, Any], name_of: Callable[..., str], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert name_of(**change) not in (name_of(), "")
    assert name_of(**change) == name_of(**change)


@pytest.mark.parametrize(
    ("plain", "other"),
    [
        ({"dpo": {}}, {"dpo": {"on_long_prompt": "cut_start"}}),
        ({"kto": {}}, {"kto": {"on_long_prompt": "cut_start"}}),
        ({"reward": {}}, {"reward": {"on_long_prompt": "cut_start"}}),
        ({"dpo": {}}, {"dpo": {}, "train": {"batch_tokens": 999}}),
        ({"reward": {}}, {"reward": {}, "train": {"batch_tokens": 999}}),
    ],
)
def test_what_a_preference_stage_says(plain: Any, other: Any, name_of: Callable[..., str]) -> None:
    assert name_of(**plain) != name_of(**other)


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"seed": 7, "max_dropped": 0.5, "packing": False, "eval": {"count": 1}, "weight_by": "tokens"}},
        {"source": {"weight": 0.5, "count": 2, "repeat": 3}},
        {"train": {"epochs": 3, "batch_tokens": 999}},
        {"output": "elsewhere"},
    ],
    ids=str,
)
def test_what_the_tokens_do_not_depend_on(change: dict[str, Any], name_of: Callable[..., str]) -> None:
    assert name_of(**change) == name_of()


def test_content_counts_and_times_do_not(name_of: Callable[..., str], tmp_path: Path) -> None:
    """One letter, at the same size and time."""
    file, before = tmp_path / "rows.jsonl", name_of()
    was = file.stat()
    file.write_text(ROWS.replace('"4"', '"x"'))
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert name_of() != before
    file.write_text(ROWS)
    os.utime(file, (1, 1))
    assert name_of() == before


@pytest.mark.parametrize("file", ["own.jinja", "own.yaml"])
def test_files_that_the_recipe_names(file: str, name_of: Callable[..., str], monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    of = {
        "own.jinja": {"model": {"path": "tiny", "from_scratch": True, "chat_template": "own.jinja"}},
        "own.yaml": {"source": {"columns": {"file": "own.yaml"}}},
    }[file]
    before = name_of(**of)
    (tmp_path / file).write_text((tmp_path / file).read_text() + "\n")
    assert name_of(**of) != before


def test_files_of_a_folder_and_their_names(name_of: Callable[..., str], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(ROWS)
    one = name_of({"path": str(tmp_path / "one")})
    assert one != name_of({"path": str(tmp_path / "two")})  # a row's place has the name
    (tmp_path / "one" / "test.jsonl").write_text(ROWS)
    assert one != name_of({"path": str(tmp_path / "one")})  # the account says that it is not read


def test_tokenizer_date_code_and_versions(
    name_of: Callable[..., str], tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import copy

    monkeypatch.chdir(tmp_path)
    before, other = name_of(), copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["more"])
    assert name_of(tokenizer=other) != before
    for name, value in {"_code": lambda: "other", "version": lambda _: "0"}.items():
        with monkeypatch.context() as patched:
            patched.setattr(token_key, name, value)
            assert name_of() != before
    of = {"model": {"path": "tiny", "from_scratch": True, "chat_template": "own.jinja"}}
    for text, same in ((CHATML, True), (CHATML + "{{ '' if strftime_now('%Y') else '' }}", False)):
        (tmp_path / "own.jinja").write_text(text)
        today = name_of(**of)
        with monkeypatch.context() as patched:
            patched.setattr(token_key, "_today", lambda: "1970-01-01")
            assert (name_of(**of) == today) == same
