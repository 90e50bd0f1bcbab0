"""Shards written again in another dtype: each checked, and none twice."""

from pathlib import Path
from typing import Any

import pytest
from export_helpers import export
from safetensors.torch import load_file, save_file

from hybrid_ft.hybrid_model.checkpoint import tensor_files
from hybrid_ft.hybrid_model.checkpoint.config import BUNDLED


def test_cut_short_it_goes_on_with_the_next_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (BUNDLED, tmp_path / "out", "--to", "transformers", "--dtype", "bfloat16", "--shard-size", "300kB")
    write = tensor_files.write_tensors
    written: list[str] = []

    def killed(path: Path, new: Any) -> None:
        if len(written) == 3:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, new)

    with monkeypatch.context() as patched:
        patched.setattr(tensor_files, "write_tensors", killed)
        assert export(*arguments) in (75, 130)
    assert not (tmp_path / "out").exists() and len(list((tmp_path / "out.part").glob("model-*.safetensors"))) == 3
    monkeypatch.setattr(tensor_files, "write_tensors", lambda path, new: (written.append(path.name), write(path, new)))
    assert export(*arguments) == 0
    assert len(written) == 9 and len(set(written)) == 9 and not (tmp_path / "out.part").exists()
    monkeypatch.undo()
    whole = (*arguments[:1], tmp_path / "whole", *arguments[2:])
    assert export(*whole) == 0
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_a_shard_that_is_not_what_was_to_be_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = tensor_files.write_tensors

    def wrong(path: Path, new: Any) -> None:
        write(path, new)
        found = load_file(path)
        name = max(found, key=lambda name: found[name].numel())
        found[name].view(-1)[7] += 1
        save_file(found, path)

    monkeypatch.setattr(tensor_files, "write_tensors", wrong)
    with pytest.raises(RuntimeError, match="is not what was to be written"):
        export(BUNDLED, tmp_path / "out", "--to", "transformers")
    assert not (tmp_path / "out").exists()
