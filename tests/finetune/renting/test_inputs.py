"""What of a recipe is brought to another machine, and what is there already."""

from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.renting.inputs import check_without_links, inputs


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(**keys: Any) -> Recipe:
    return Recipe.model_validate({"model": {"path": "my-org/base"}, "data": {"sources": [{"path": "a-set"}]}} | keys)


def brought(**keys: Any) -> dict[str, dict[str, str]]:
    return {one.key: one.files for one in inputs([("", recipe(**keys))])}


def test_what_ships_is_not_brought_though_a_file_here_has_its_name(here: Path) -> None:
    for name in ("tiny", "olmo-instruct", "gsm8k"):
        (here / name).touch()
    sources = [{"path": "a-set", "columns": "gsm8k"}]
    assert brought(model={"path": "tiny", "chat_template": "olmo-instruct"}, data={"sources": sources}) == {}


def test_every_place_of_a_path_is_looked_at(here: Path) -> None:
    for name in ("base", "words", "turns.jinja", "rows.jsonl", "held.jsonl", "map.yaml"):
        (here / name).write_text("prompt: a\ncompletion: b\n")
    data = {
        "sources": [{"path": "a-set"}, {"path": "rows.jsonl"}],
        "eval": {"sources": [{"path": "held.jsonl", "columns": "map.yaml"}]},
    }
    model = {"path": "base", "tokenizer": "words", "chat_template": "turns.jinja"}
    assert brought(model=model, data=data) == {
        "model.path": {"inputs/0/base": str(here / "base")},
        "model.tokenizer": {"inputs/1/words": str(here / "words")},
        "model.chat_template": {"inputs/2/turns.jinja": str(here / "turns.jinja")},
        "data.sources.1.path": {"inputs/3/rows.jsonl": str(here / "rows.jsonl")},
        "data.eval.sources.0.path": {"inputs/4/held.jsonl": str(here / "held.jsonl")},
        "data.eval.sources.0.columns": {"inputs/5/map.yaml": str(here / "map.yaml")},
    }


def test_files_of_one_name_in_several_folders_stay_apart_and_in_order(here: Path) -> None:
    for folder in ("b", "a"):
        (here / folder).mkdir()
        (here / folder / "rows.jsonl").touch()
    (one,) = inputs([("", recipe(data={"sources": [{"path": "*/rows.jsonl"}]}))])
    assert one.override == "data.sources.0.path=inputs/0/*"
    files = {f"inputs/0/00{number}-rows.jsonl": str(here / name / "rows.jsonl") for number, name in enumerate("ab")}
    assert one.files == files and list(one.files) == sorted(files)


def test_data_of_this_program_is_there_by_its_own_path_alone(
    here: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path relative to the clone is one of the user's: the folder that the command runs in is another there."""
    name = "datasets/quickstart/heldout.jsonl"
    (one,) = inputs([("", recipe(data={"sources": [{"path": str(root / name)}]}))])
    assert (one.value, one.files) == (name, {})
    monkeypatch.chdir(root)
    (one,) = inputs([("", recipe(data={"sources": [{"path": name}]}))])
    assert one.files == {"inputs/0/heldout.jsonl": str(root / name)}


@pytest.mark.parametrize("of_folder", [True, False])
def test_links_in_a_folder_are_refused(here: Path, of_folder: bool) -> None:
    (here / "base").mkdir()
    target = here / "elsewhere"
    target.mkdir() if of_folder else target.touch()
    (here / "base/part").symlink_to(target)
    with pytest.raises(
        InputError, match=r"model\.path: 'part' is a link, which is not uploaded; copy the folder with cp -rL"
    ):
        check_without_links(inputs([("", recipe(model={"path": "base"}))]))
