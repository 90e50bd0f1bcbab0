"""Files of a place by their names, the same in a folder and in a store of objects."""

import os

import pytest

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.mirror.place import Place


def test_what_is_written_is_read_listed_and_removed(place, tmp_path):
    there = Place(place)
    assert (there.read("a"), there.listing(), there.first()) == (None, {}, None)
    there.write("sub/a.json", b"one")
    there.write("sub/a.json", b"three")
    (tmp_path / "file").write_bytes(b"12345678")
    there.put(tmp_path / "file", "sub/deep/file")
    assert there.read("sub/a.json") == b"three"
    assert there.listing() == {"sub/a.json": 5, "sub/deep/file": 8}
    assert there.listing("sub/deep") == {"file": 8}
    assert there.first() == "sub"
    there.get("sub/deep/file", tmp_path / "new/back")
    assert (tmp_path / "new/back").read_bytes() == b"12345678"
    there.remove("sub/a.json")
    there.remove("sub/a.json")
    there.remove_folder("sub/deep")
    there.remove_folder("sub/deep")
    assert there.listing() == {}


def test_a_folder_that_cannot_be_looked_into_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    there = Place(str(tmp_path / "mirror"))
    there.write("sub/a", b"1")

    def refused(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError):
        there.listing()


def test_what_is_overwritten_in_a_folder_is_never_half_there(tmp_path, monkeypatch):
    there = Place(str(tmp_path / "mirror"))
    there.write("run.json", b"old")

    def full(path, content):
        (tmp_path / "mirror" / path.rpartition("/")[2]).write_bytes(content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(there.files, "pipe_file", full)
    with pytest.raises(OSError):
        there.write("run.json", b"newer")
    assert there.read("run.json") == b"old"


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ("s4://a/b", 2, "'s4://a/b' must be a folder or s3://"),
        ("simplecache::s3://a/b", 2, "must be a folder or s3://"),
        ("s3:/a/b", 2, "'s3:/a/b' must be a folder or s3://"),
        ("me@host:runs/mine", 2, "'me@host:runs/mine' must be a folder or s3://"),
        ("s3://", 2, "'s3://' must be a folder or s3://"),
        ("az://a/b", ENVIRONMENT, "az://a/b needs a package that is not installed; pip install adlfs"),
    ],
)
def test_places_that_cannot_be(text, status, says):
    with pytest.raises(InputError) as error:
        Place(text)
    assert error.value.status == status and says in str(error.value)


def test_a_folder_may_have_a_colon_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Place("./runs:1/mine").write("run.json", b"here")
    assert (tmp_path / "runs:1/mine/run.json").read_bytes() == b"here"


def test_a_password_is_not_shown():
    with pytest.raises(InputError) as error:
        Place("az://me:open-sesame@runs/m")
    assert "sesame" not in str(error.value)
