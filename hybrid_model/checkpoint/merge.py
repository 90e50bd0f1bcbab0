"""Merging an adapter file by file, in the memory of a few rows.

Weights that the adapter leaves alone are the base's, byte for byte; the others are computed in float32 and rounded
once. Names are the base's, or those that its family was released with, and files are called as in the base. A file is
whole or not there: what was cut short goes on with the next one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from hybrid_ft.hybrid_model.checkpoint.adapter_changes import Change, Changes, read_changes
from hybrid_ft.hybrid_model.checkpoint.adapter_files import CONFIG, WEIGHTS
from hybrid_ft.hybrid_model.checkpoint.merge_places import places_of
from hybrid_ft.hybrid_model.checkpoint.tensor_files import (
    NewTensor,
    StoredTensor,
    rounded,
    row_blocks,
    stored_tensors,
    write_files,
)
from hybrid_ft.hybrid_model.checkpoint.weight_files import (
    check_weight_files,
    read_headers,
)
from hybrid_ft.hybrid_model.families.known import family_of

_PROBES = 4
_ROUNDINGS = 2.0
"""How many roundings of the result's dtype, relative to its rows, a merged weight may be off the adapter's own sum."""


class Merge:
    """An adapter ``folder`` on the checkpoint ``base`` of ``config``; ``dtype``: of all tensors but those that the
    family keeps in float32, or None for the base's.

    ``config`` becomes that of the result: a resized vocabulary, embeddings that are no longer one. Only headers are
    read. Raises InputError for a base or an adapter that is damaged, and where merging would be wrong; Unplaced for an
    adapter that must be merged in memory.
    """

    def __init__(self, folder: Path, base: Path, config: PreTrainedConfig, dtype: torch.dtype | None = None) -> None:
        self.folder, self.base, self.config, self.dtype = folder, base, config, dtype
        self._places = places_of(base, config)
        self.tied_base = bool(config.tie_word_embeddings)
        self.changes: Changes = read_changes(folder, self._places.in_memory, self.tied_base, self._places.embedding)
        self._shapes = self._places.settle(folder, self.changes, config)
        family = family_of(config)
        self._kept = family.float32 if family.released is None else ()
        self.dtypes: dict[str, torch.dtype] = {}
        self._of_file: dict[str, list[str]] = {}
        for name in self._shapes:
            source = self._places.source(name)
            self.dtypes[name] = source.dtype if dtype is None or name.endswith(self._kept) else dtype
            self._of_file.setdefault(source.path.name, []).append(name)

    @property
    def weights(self) -> Path:
        """The adapter's file."""
        return self.folder / WEIGHTS

    @property
    def embedding(self) -> str:
        """Its tensor's name in memory."""
        return self._places.embedding

    @property
    def parameters(self) -> int:
        return sum(map(prod, self._shapes.values()))

    @property
    def bytes(self) -> int:
        """Of the result's tensors."""
        return sum(prod(shape) * self.dtypes[name].itemsize for name, shape in self._shapes.items())

    @property
    def changed(self) -> list[str]:
        """Released names of the tensors that differ from the base's."""
        return [name for name in self._shapes if self._change(name) is not None]

    def identity(self) -> str:
        """A digest of all that decides the result."""
        parts = [str(self.dtype), (self.folder / CONFIG).read_text(encoding="utf-8"), _sha256(self.weights)]
        parts.append((self.base / "config.json").read_text(encoding="utf-8"))
        for path in read_headers(self.base):
            found = path.stat()
            parts.append(f"{path.name} {found.st_size} {found.st_mtime_ns}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def rounding(self, name: str) -> torch.dtype:
        """Of a tensor in memory, float32 for one that stays as it is in the base."""
        if self.dtype is not None:
            return torch.float32 if name.endswith(self._kept) else self.dtype
        changed = (self.dtypes[each] for each in self._shapes if self._places.memory_name(each) == name)
        return next(changed, torch.float32)

    def write_config(self, out: Path) -> None:
        self._places.write_config(out, self.config, self.dtype)

    def write(self, out: Path, show: Callable[[int, int], None] = lambda done, total: None) -> None:
        """The weight files that ``out`` does not hold yet, and their index. ``show``: as ``write_files``."""
        write_files(out, self._of_file, self._new, self.bytes, show)

    def verify(self, out: Path) -> None:
        """Read the files back: every name and shape of the config; what was not trained equal to the base; each merged
        weight times random vectors what base and adapter give apart. Raises RuntimeError where they are not."""
        check_weight_files(out, self.config)
        written: dict[str, StoredTensor] = {}
        for path in read_headers(out):
            written |= stored_tensors(path)
        if differing := written.keys() ^ self._shapes.keys():
            raise RuntimeError(
                f"{out}: tensor {min(differing)} is only in one of the result and what was to be written"
            )
        generator = torch.Generator().manual_seed(0)
        for name, stored in written.items():
            change = self._change(name)
            if stored.dtype != self.dtypes[name]:
                raise RuntimeError(f"{stored.path}: {name} is {stored.dtype} and must be {self.dtypes[name]}")
            if change is not None and change.a is not None:
                self._verify_sum(stored, name, change, generator)
                continue
            for (start, stop), block in zip(row_blocks(stored.shape), self._new(name).blocks, strict=True):
                if not torch.equal(stored.read(start, stop), block):
                    raise RuntimeError(f"{stored.path}: {name} is not what was to be written; the disk may be failing")

    def _verify_sum(self, stored: StoredTensor, name: str, change: Change, generator: torch.Generator) -> None:
        """Without the product of the factors, which the merge computes: lengths of rows come from their Gram matrix."""
        base, vectors = (
            self._places.source(name),
            torch.randn(stored.shape[-1], _PROBES, generator=generator, dtype=torch.float64),
        )
        product = _of_experts if change.experts else _of_rows(change, vectors)
        difference = size = 0.0
        for start, stop in row_blocks(stored.shape):
            rows = (base if change.whole is None else change.whole).read(start, stop).double()
            expected = product(change, rows, start, stop, vectors)
            for place, token in enumerate(change.token_ids):
                if start <= token < stop and change.tokens is not None:
                    expected[token - start] = change.tokens.read(place, place + 1)[0].double() @ vectors
            found = stored.read(start, stop).double() @ vectors
            difference += float((found - expected).square().sum())
            size += float(expected.square().sum())
        limit = _ROUNDINGS * torch.finfo(stored.dtype).eps + 1e-5
        if not difference**0.5 <= limit * size**0.5:
            off = (difference / size) ** 0.5 if size else difference
            raise RuntimeError(f"{stored.path}: {name} is {off:.1e} off base and adapter apart (at most {limit:.0e})")

    def _new(self, name: str) -> NewTensor:
        shape, dtype, change = self._shapes[name], self.dtypes[name], self._change(name)
        part = self._places.cut(name, self.changes)

        def blocks() -> Iterator[torch.Tensor]:
            for start, stop in row_blocks(shape):
                if part is not None:
                    rows = part[start:stop]
                else:
                    whole = change is not None and change.whole is not None
                    rows = torch.empty(0) if whole else self._places.source(name).read(start, stop)
                    rows = rows if change is None else change.applied(rows, start, stop)
                yield rounded(rows, dtype, f"{self.folder}: merged, {name}")

        return NewTensor(name, dtype, shape, blocks())

    def _change(self, name: str) -> Change | None:
        return self.changes.of.get(self._places.memory_name(name) or "")


_Product = Callable[[Change, torch.Tensor, int, int, torch.Tensor], torch.Tensor]


def _of_rows(change: Change, vectors: torch.Tensor) -> _Product:
    """What rows ``start`` to ``stop`` of the new weight give, from those of the base."""
    a, b = _factors(change)
    small, gram = a @ vectors, a @ a.T

    def product(change: Change, rows: torch.Tensor, start: int, stop: int, vectors: torch.Tensor) -> torch.Tensor:
        left = change.scale * b[start:stop]
        given = rows @ vectors + left @ small
        if change.magnitude is not None:
            squares = rows.square().sum(1) + 2 * ((rows @ a.T) * left).sum(1) + ((left @ gram) * left).sum(1)
            given = given * (change.magnitude.read(start, stop).double() / squares.sqrt()).unsqueeze(1)
        return given

    return product


def _of_experts(change: Change, rows: torch.Tensor, start: int, stop: int, vectors: torch.Tensor) -> torch.Tensor:
    """The same of experts ``start`` to ``stop``."""
    a, b = (factor.double() for factor in change.of_experts(start, stop))
    return rows @ vectors + change.scale * b @ (a @ vectors)


def _factors(change: Change) -> tuple[torch.Tensor, torch.Tensor]:
    """``a`` [r, in] and ``b`` [out, r] in float64, of the weight as it is stored."""
    assert change.a is not None and change.b is not None
    a, b = change.a.read().double(), change.b.read().double()
    return (b.T, a.T) if change.embedding else (a, b)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
