"""Merging an adapter file by file, in the memory of a few rows.

Weights that the adapter leaves alone are the base's, byte for byte; the others are computed in float32 and rounded once.
Names are the released ones, and files bear the names that they have in the base. A file is whole or not there: what was
cut short goes on with the next one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from hybrid_ft.errors import NUMERICS, InputError
from hybrid_ft.hybrid_model.checkpoint.adapter_changes import EMBEDDING, HEAD, Change, Changes, read_changes
from hybrid_ft.hybrid_model.checkpoint.adapter_files import CONFIG, WEIGHTS
from hybrid_ft.hybrid_model.checkpoint.tensor_files import (
    NewTensor,
    StoredTensor,
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
    """An adapter ``folder`` on the checkpoint ``base`` of ``config``, whose family writes released files; ``dtype``: of all tensors, or None for the base's.

    ``config`` becomes that of the result: a resized vocabulary, embeddings that are no longer one. Only headers are read.
    Raises InputError for a base or an adapter that is damaged, and where merging would be wrong.
    """

    def __init__(self, folder: Path, base: Path, config: PreTrainedConfig, dtype: torch.dtype | None = None) -> None:
        self.folder, self.base, self.config, self.dtype = folder, base, config, dtype
        released = family_of(config).released
        assert released is not None
        self._released = released
        check_weight_files(base, config)
        self._stored: dict[str, StoredTensor] = {}
        for path in read_headers(base):
            self._stored |= {released.current(name): stored for name, stored in stored_tensors(path).items()}
        self.tied_base = bool(config.tie_word_embeddings)
        self.changes: Changes = read_changes(folder, self._in_memory(), self.tied_base)
        self.config.tie_word_embeddings = self.changes.tied
        self.config.vocab_size = self.changes.vocabulary
        self.dtypes: dict[str, torch.dtype] = {}
        self._of_file: dict[str, list[str]] = {}
        self._shapes = released.shapes(self.config)
        for name in self._shapes:
            source = self._source(name)
            self.dtypes[name] = dtype or source.dtype
            self._of_file.setdefault(source.path.name, []).append(name)

    @property
    def weights(self) -> Path:
        """The adapter's file."""
        return self.folder / WEIGHTS

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
            self._source(name),
            torch.randn(stored.shape[1], _PROBES, generator=generator, dtype=torch.float64),
        )
        a, b = _factors(change)
        small, gram = a @ vectors, a @ a.T
        difference = size = 0.0
        for start, stop in row_blocks(stored.shape):
            rows = (base if change.whole is None else change.whole).read(start, stop).double()
            left = change.scale * b[start:stop]
            expected = rows @ vectors + left @ small
            if change.magnitude is not None:
                squares = rows.square().sum(1) + 2 * ((rows @ a.T) * left).sum(1) + ((left @ gram) * left).sum(1)
                expected = expected * (change.magnitude.read(start, stop).double() / squares.sqrt()).unsqueeze(1)
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
        joined = self._released.joined(name)
        if joined is not None:
            part = self._released.named({joined: self._whole(joined)}, self.config)[name]
            return NewTensor(name, dtype, shape, (part[start:stop].to(dtype) for start, stop in row_blocks(shape)))
        source = self._source(name)

        def blocks() -> Iterator[torch.Tensor]:
            for start, stop in row_blocks(shape):
                whole = change is not None and change.whole is not None
                rows = torch.empty(0) if whole else source.read(start, stop)
                rows = (rows if change is None else change.applied(rows, start, stop)).to(dtype)
                if not bool(torch.isfinite(rows).all()):
                    raise InputError(
                        f"{self.folder}: merged, {name} holds values that are not finite in {dtype}; choose another dtype",
                        NUMERICS,
                    )
                yield rows

        return NewTensor(name, dtype, shape, blocks())

    def _whole(self, joined: str) -> torch.Tensor:
        """However the base's files cut it."""
        change = self.changes.of.get(joined)
        if change is not None and change.whole is not None:
            return change.whole.read()
        if joined in self._stored:
            return self._stored[joined].read()
        parts = [name for name in self._shapes if self._released.joined(name) == joined]
        return torch.cat([self._stored[part].read() for part in parts])

    def _change(self, name: str) -> Change | None:
        return self.changes.of.get(self._released.joined(name) or name)

    def _source(self, name: str) -> StoredTensor:
        """The base's tensor that a released one comes from."""
        if name == HEAD and HEAD not in self._in_files():
            return self._stored[EMBEDDING]
        if name in self._stored:
            return self._stored[name]
        joined = self._released.joined(name)
        assert joined is not None
        return self._stored[joined]

    def _in_files(self) -> set[str]:
        """A tied base may hold its head as well, and nobody reads it there."""
        return self._stored.keys() - ({HEAD} if self.tied_base else set())

    def _in_memory(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the base by the names that PEFT knows: convolutions joined."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in self._released.shapes(self.config).items():
            joined = self._released.joined(name)
            if joined is None:
                shapes[name] = shape
            else:
                shapes[joined] = (shapes.get(joined, (0,))[0] + shape[0], *shape[1:])
        return shapes


def _factors(change: Change) -> tuple[torch.Tensor, torch.Tensor]:
    """``a`` [r, in] and ``b`` [out, r] in float64, of the weight as it is stored."""
    assert change.a is not None and change.b is not None
    a, b = change.a.read().double(), change.b.read().double()
    return (b.T, a.T) if change.embedding else (a, b)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
