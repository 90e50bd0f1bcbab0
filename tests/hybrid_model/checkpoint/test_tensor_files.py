"""Tensors by rows: what is written opens in safetensors, what safetensors wrote is read, block by block."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybrid_ft.errors import NUMERICS, InputError
from hybrid_ft.hybrid_model.checkpoint import tensor_files
from hybrid_ft.hybrid_model.checkpoint.tensor_files import (
    NewTensor,
    rounded,
    row_blocks,
    stored_tensors,
    write_files,
    write_tensors,
)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "half": torch.randn(7, 3, generator=generator).to(torch.bfloat16),
        "wide": torch.randn(5, 2, 2, generator=generator, dtype=torch.float64),
        "one": torch.tensor(3.5),
        "none": torch.empty(0, 4),
        "odd": torch.randn(3, generator=generator).half(),
    }


def new(name: str, tensor: torch.Tensor) -> NewTensor:
    blocks = (tensor[start:stop] if tensor.shape else tensor for start, stop in row_blocks(tuple(tensor.shape)))
    return NewTensor(name, tensor.dtype, tuple(tensor.shape), blocks)


def test_what_safetensors_wrote_is_read_by_rows(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    stored = stored_tensors(tmp_path / "a.safetensors")
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        read = stored[name].read()
        assert read.dtype == tensor.dtype and torch.equal(read, tensor)
        for start in range(stored[name].rows if tensor.shape else 0):
            assert torch.equal(stored[name].read(start, start + 1), tensor[start : start + 1])


def test_what_is_written_in_blocks_opens_in_safetensors(
    tmp_path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "BLOCK", 5)
    write_tensors(tmp_path / "a.safetensors", [new(name, tensor) for name, tensor in tensors.items()])
    opened = load_file(tmp_path / "a.safetensors")
    assert {name: tensor.dtype for name, tensor in opened.items()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(opened[name], tensor) for name, tensor in tensors.items())


def test_blocks_that_do_not_fill_a_tensor_are_an_error(tmp_path: Path) -> None:
    short = NewTensor("a", torch.float32, (3, 2), [torch.zeros(2, 2)])
    with pytest.raises(ValueError, match="a: 4 elements written, 6 promised"):
        write_tensors(tmp_path / "a.safetensors", [short])


def test_a_file_that_ends_early_is_not_read_as_zeros(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    stored = stored_tensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="ends early"):
        [one.read() for one in stored.values()]


def test_only_files_that_are_missing_are_written_and_the_index_names_all(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    files = {"model-00001-of-00002.safetensors": ["half", "one"], "model-00002-of-00002.safetensors": ["wide"]}
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"there")
    seen = []
    write_files(
        tmp_path, files, lambda name: new(name, tensors[name]), 123, lambda done, of_all: seen.append((done, of_all))
    )
    assert (tmp_path / "model-00001-of-00002.safetensors").read_bytes() == b"there"
    assert torch.equal(load_file(tmp_path / "model-00002-of-00002.safetensors")["wide"], tensors["wide"])
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file for file, names in files.items() for name in names}
    assert seen == [(0, 2), (1, 2), (2, 2)] and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("shape", [(), (0, 3), (7, 3), (4, 100), (10,)])
def test_blocks_of_rows_cover_each_row_once(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "BLOCK", 9)
    rows = [row for start, stop in row_blocks(shape) for row in range(start, stop)]
    assert rows == list(range(shape[0] if shape else 1))
    assert all(
        (stop - start) * torch.Size(shape[1:]).numel() <= 9 or stop - start == 1 for start, stop in row_blocks(shape)
    )


def test_what_another_dtype_cannot_hold_is_told_from_what_is_broken() -> None:
    assert rounded(torch.tensor([1.0, 2.0]), torch.float16, "x").dtype == torch.float16
    with pytest.raises(
        InputError, match=r"^x holds values that are not finite in torch.float16; choose another"
    ) as large:
        rounded(torch.tensor([1e6]), torch.float16, "x")
    assert large.value.status == NUMERICS
    with pytest.raises(InputError, match="^x holds values that are not finite; take another checkpoint"):
        rounded(torch.tensor([torch.nan]), torch.float32, "x")
