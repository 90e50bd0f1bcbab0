"""Safetensors files read and written a few rows at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch

from hybrid_ft.errors import NUMERICS, InputError
from hybrid_ft.hybrid_model.checkpoint.usual_mode import give_usual_mode
from hybrid_ft.hybrid_model.checkpoint.weight_files import INDEX, SINGLE, read_header

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
BLOCK = 2**24
"""Elements that are held at once: 64 MB in float32."""


class StoredTensor(NamedTuple):
    """A tensor in a file; ``begin`` is its first byte there. Rows are along the first dimension."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows ``start`` to ``stop``, or all."""
        stop = self.rows if stop is None else stop
        each = prod(self.shape[1:])
        raw = bytearray((stop - start) * each * self.dtype.itemsize)
        with self.path.open("rb") as file:
            file.seek(self.begin + start * each * self.dtype.itemsize)
            if file.readinto(raw) != len(raw):
                raise OSError(f"{self.path} ends early")
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        return torch.frombuffer(raw, dtype=self.dtype).reshape(shape) if raw else torch.empty(shape, dtype=self.dtype)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """What a safetensors file holds. Raises InputError for a damaged file."""
    header = read_header(path)
    with path.open("rb") as file:
        data = 8 + int.from_bytes(file.read(8), "little")
    return {
        name: StoredTensor(path, DTYPES[entry["dtype"]], tuple(entry["shape"]), data + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def rounded(rows: torch.Tensor, dtype: torch.dtype, what: str) -> torch.Tensor:
    """The rows in ``dtype``. Raises InputError for those that are not finite, or not in it;
    ``what`` begins the message."""
    made = rows.to(dtype)
    if not bool(torch.isfinite(made).all()):
        if bool(torch.isfinite(rows).all()):
            raise InputError(f"{what} holds values that are not finite in {dtype}; choose another --dtype", NUMERICS)
        raise InputError(f"{what} holds values that are not finite; take another checkpoint")
    return made


class NewTensor(NamedTuple):
    """A tensor to write: ``blocks`` are its rows in order."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Iterable[torch.Tensor]


def write_tensors(path: Path, tensors: list[NewTensor]) -> None:
    """Write a safetensors file, block by block, synced. Raises ValueError where blocks do not fill a tensor."""
    tensors = sorted(
        tensors, key=lambda tensor: -tensor.dtype.itemsize
    )  # every tensor begins at a multiple of its item
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        end = position + prod(tensor.shape) * tensor.dtype.itemsize
        header[tensor.name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            written = 0
            for block in tensor.blocks:
                written += block.numel()
                file.write(block.to(tensor.dtype).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            if written != prod(tensor.shape):
                raise ValueError(f"{tensor.name}: {written} elements written, {prod(tensor.shape)} promised")
        file.flush()
        os.fsync(file.fileno())


def write_files(
    out: Path,
    files: Mapping[str, Sequence[str]],
    new: Callable[[str], NewTensor],
    size: int,
    show: Callable[[int, int], None],
) -> None:
    """The weight files that ``out`` does not hold yet, each whole or not there, and their index.

    files: names of tensors by file; ``new`` gives a tensor by its name; size: bytes of all; ``show`` is called with
    files done, of all
    """
    for number, (file, names) in enumerate(files.items()):
        show(number, len(files))
        path, staged = out / file, out / f".{file}"
        if not path.exists():
            write_tensors(staged, [new(name) for name in names])
            give_usual_mode([staged])
            os.replace(staged, path)
    show(len(files), len(files))
    if list(files) != [SINGLE]:
        weight_map = {name: file for file, names in files.items() for name in names}
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The [start, stop) of blocks of rows that hold about ``BLOCK`` elements."""
    rows, each = (shape[0] if shape else 1), max(1, prod(shape[1:]))
    step = max(1, BLOCK // each)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
