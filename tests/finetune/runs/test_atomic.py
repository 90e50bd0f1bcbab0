"""A file that is whole or as it was before."""

from pathlib import Path

import pytest

from hybrid_ft.finetune.runs.atomic import whole_file


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
