"""A file that is whole or as it was before."""

import os
from pathlib import Path

import pytest

from hybrid_ft.finetune.runs.atomic import whole_file, write_text


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"
    with whole_file(path) as staged:
        staged.write_bytes(b"new")
        assert not path.exists() and staged.parent == tmp_path
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_old_file_stands_alone(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), whole_file(path) as staged:
        staged.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_goes_when_it_is_old(tmp_path: Path) -> None:
    """Not a file that another machine may still be writing, nor one that only looks alike."""
    path = tmp_path / "rows[1].parquet"
    old, new, other = (tmp_path / f".{name}" for name in (f"{path.name}.41", f"{path.name}.42", f"{path.name}.txt"))
    for left in (old, new, other):
        left.write_text("half")
    for left in (old, other):
        os.utime(left, (0, 0))
    write_text(path, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, new, other])
    os.utime(new, (0, 0))
    with whole_file(path) as staged:
        staged.write_text("anew")
    assert sorted(tmp_path.iterdir()) == sorted([path, other])
