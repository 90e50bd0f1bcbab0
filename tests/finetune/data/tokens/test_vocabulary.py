"""A tokenizer that is larger than the model's embedding stops everything before a row is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.recipe.schema import Dpo, Recipe
from hybrid_ft.hybrid_model.checkpoint.config import BUNDLED

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose config asks for 300 embedding rows; its weights are nowhere."""
    config = json.loads((BUNDLED / "config.json").read_text())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    return folder


@pytest.fixture
def wanted(folder: Path, recipe: MakeRecipe) -> Callable[..., Recipe]:
    def made(**model: Any) -> Recipe:
        given = recipe("there-is-no-such-file.jsonl")
        changed = given.model.model_copy(update={"path": str(folder), **model})
        return given.model_copy(update={"model": changed})

    return made


@pytest.mark.parametrize("pairs", [False, True])
def test_too_many_tokens(pairs: bool, wanted: Callable[..., Recipe], folder: Path, tokenizer: Any) -> None:
    needed = max(tokenizer.get_vocab().values()) + 1
    given = wanted()
    if pairs:
        given = given.model_copy(update={"dpo": Dpo()})
    with pytest.raises(InputError, match=f"model.path: .*needs an embedding of {needed} rows, .*has 300; set") as error:
        prepare(given, tokenizer)
    assert error.value.status == 2 and "\n" not in str(error.value)
    given = given.model_copy(update={"model": given.model.model_copy(update={"tokenizer": "another"})})
    with pytest.raises(InputError, match=f"model.tokenizer: another needs .*{needed} rows, .*has 300; leave"):
        prepare(given, tokenizer)


def test_a_model_from_scratch_fits_any_tokenizer(wanted: Callable[..., Recipe], tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"there-is-no-such-file\.jsonl: no such file"):
        prepare(wanted(from_scratch=True), tokenizer)


def test_an_embedding_that_is_just_large_enough(wanted: Callable[..., Recipe], folder: Path, tokenizer: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": max(tokenizer.get_vocab().values()) + 1}))
    with pytest.raises(InputError, match=r"model: no model\.safetensors"):  # what is looked at next
        prepare(wanted(), tokenizer)


def test_a_model_without_a_config(wanted: Callable[..., Recipe], folder: Path, tokenizer: Any) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(InputError, match=r"model/config\.json: missing; a checkpoint has one"):
        prepare(wanted(), tokenizer)
