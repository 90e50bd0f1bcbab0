"""A checkpoint in another dtype and other shards, a few rows at a time.

Names are the source's. Tensors that a family keeps in float32 stay as they are, unless its released files have one
dtype. A shard is whole or not there: what was cut short goes on with the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from hybrid_ft.finetune.runs.identity import digest_of, stamps
from hybrid_ft.hybrid_model.checkpoint.tensor_files import (
    NewTensor,
    StoredTensor,
    rounded,
    row_blocks,
    stored_tensors,
    write_files,
)
from hybrid_ft.hybrid_model.checkpoint.weight_files import (
    SINGLE,
    check_weight_files,
    read_headers,
)
from hybrid_ft.hybrid_model.families.known import family_of


class Rewrite:
    """The checkpoint in ``source`` of ``config``, with ``dtype`` (None: as it is) and shards of
    at most ``shard`` bytes.

    A tensor larger than that has a shard of its own. Only headers are read. Raises InputError for damaged files.
    """

    def __init__(self, source: Path, config: PreTrainedConfig, dtype: torch.dtype | None, shard: int) -> None:
        check_weight_files(source, config)
        self.source, self.dtype, self.shard = source, dtype, shard
        self.stored: dict[str, StoredTensor] = {}
        for path in read_headers(source):
            self.stored |= stored_tensors(path)
        family = family_of(config)
        kept = family.float32 if family.released is None else ()
        self.dtypes = {
            name: stored.dtype if dtype is None or name.endswith(kept) else dtype
            for name, stored in self.stored.items()
        }
        self.files = dict(self._files())

    @property
    def parameters(self) -> int:
        return sum(prod(stored.shape) for stored in self.stored.values())

    @property
    def bytes(self) -> int:
        return sum(map(self._bytes, self.stored))

    def identity(self) -> str:
        """A digest of all that decides the result."""
        config = (self.source / "config.json").read_text(encoding="utf-8")
        return digest_of([str(self.dtype), self.shard, config, *stamps(read_headers(self.source))])

    def write(self, out: Path, show: Callable[[int, int], None] = lambda done, total: None) -> None:
        """The shards that ``out`` does not hold yet, and their index. ``show``: as ``write_files``."""
        write_files(out, self.files, self._new, self.bytes, show)

    def verify(self, out: Path) -> None:
        """Read every tensor back and compare it with the source, rounded. Raises RuntimeError for one that differs."""
        written: dict[str, StoredTensor] = {}
        for path in read_headers(out):
            written |= stored_tensors(path)
        if written.keys() != self.stored.keys():
            raise RuntimeError(f"{out}: holds other tensors than {self.source}")
        for name, stored in written.items():
            for (start, stop), block in zip(row_blocks(stored.shape), self._new(name).blocks, strict=True):
                found = stored.read(start, stop)
                if found.dtype != block.dtype or not torch.equal(found, block):
                    raise RuntimeError(f"{stored.path}: {name} is not what was to be written; the disk may be failing")

    def config(self, raw: dict[str, Any]) -> dict[str, Any]:
        """``config.json`` with the dtype of the result."""
        if self.dtype is None:
            return raw
        for part in (raw, raw.get("text_config") or {}):
            part.pop("torch_dtype", None)
            part["dtype"] = str(self.dtype).removeprefix("torch.")
        return raw

    def _bytes(self, name: str) -> int:
        return prod(self.stored[name].shape) * self.dtypes[name].itemsize

    def _files(self) -> Iterator[tuple[str, list[str]]]:
        """Names of tensors by shard, in the source's order."""
        shards: list[list[str]] = [[]]
        room = self.shard
        for name in self.stored:
            if shards[-1] and self._bytes(name) > room:
                shards.append([])
                room = self.shard
            shards[-1].append(name)
            room -= self._bytes(name)
        for number, names in enumerate(shards, start=1):
            yield SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors", names

    def _new(self, name: str) -> NewTensor:
        stored, dtype = self.stored[name], self.dtypes[name]

        def blocks() -> Iterator[torch.Tensor]:
            for start, stop in row_blocks(stored.shape):
                yield rounded(stored.read(start, stop), dtype, f"{self.source}: {name}")

        return NewTensor(name, dtype, stored.shape, blocks())
