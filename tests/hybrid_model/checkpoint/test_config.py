"""A model folder whose small files are damaged: the file is named, in one line."""

import shutil
from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.config import BUNDLED, find_config
from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer

TOKENIZER = ["tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (*TOKENIZER, "config.json"):
        shutil.copy(BUNDLED / name, folder)
    return folder


def damage(file: Path, how: str) -> None:
    whole = file.read_bytes()
    file.unlink()
    if how == "a folder":
        file.mkdir()
    elif how != "missing":
        found = {"cut": whole[:100], "empty": b"", "a list": b"[]", "deep": b"[" * 100_000, "UTF-16": b"\xff\xfe{\0}\0"}
        file.write_bytes(found[how])


SAYS = {
    "cut": "not JSON (",
    "empty": "the file is empty",
    "a list": "not a JSON object",
    "deep": "not JSON (",
    "UTF-16": "not JSON (",
    "a folder": "is a folder",
}


@pytest.mark.parametrize("how", SAYS)
@pytest.mark.parametrize("name", [*TOKENIZER, "config.json"])
def test_the_damaged_file_is_named(name: str, how: str, folder: Path) -> None:
    damage(folder / name, how)
    for read in (load_tokenizer, find_config) if name == "config.json" else (load_tokenizer,):
        with pytest.raises(InputError) as error:
            read(folder)
        assert str(error.value).startswith(f"{folder / name}: {SAYS[how]}")
        assert "\n" not in str(error.value) and error.value.status == 2


def test_what_is_missing_is_named(folder: Path) -> None:
    damage(folder / "tokenizer.json", "missing")
    with pytest.raises(InputError, match=r"tokenizer\.json: missing; a tokenizer lies beside its model"):
        load_tokenizer(folder)
    damage(folder / "config.json", "missing")
    with pytest.raises(InputError, match=r"config\.json: missing; a checkpoint has one"):
        find_config(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "tokenizer.json: holds no tokenizer (key model is missing)"),
        ('{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}}', "cannot be read ("),
        ('{"added_tokens": [], "model": {"type": "no such model"}}', "cannot be read ("),
    ],
)
def test_json_that_is_no_tokenizer(text: str, says: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(InputError) as error:
        load_tokenizer(folder)
    assert says in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("entry", ['"rope_parameters": [1]', '"vocab_size": "x"', '"layer_types": 7'])
def test_a_config_with_a_wrong_value(entry: str, folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "olmo_hybrid", ' + entry + "}")
    for read in (load_tokenizer, find_config):
        with pytest.raises(InputError, match=r"model/config\.json: .*" + entry.split('"')[1]):
            read(folder)


def test_a_file_in_the_place_of_a_folder(folder: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: is a file; name the folder that it lies in"):
        load_tokenizer(folder / "config.json")
