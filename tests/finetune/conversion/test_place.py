"""A conversion that is cut off at its very end or beginning is gone on with."""

import os
from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.conversion.place import Place


def convert(out: Path) -> None:
    place = Place(out)
    with place.held("the same") as part:
        (part / "weights").write_text("w")
        (part / ".half").write_text("")
        place.publish(part)


def test_a_cut_while_the_folder_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*paths: Path) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out.part").mkdir()  # cut before its record was there
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", cut)
        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / "out")
    assert (tmp_path / "out.part" / "weights").exists()
    convert(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights"] and not (tmp_path / "out.part").exists()


def test_another_folder_of_that_name_stays(tmp_path: Path) -> None:
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "mine").write_text("m")
    with pytest.raises(InputError, match="out.part: is in the way"):
        Place(tmp_path / "out")
    assert (tmp_path / "out.part" / "mine").read_text() == "m"
