"""The reference's log-probabilities of every pair, computed once and shared.

``reference.json`` says what they belong to: the base's weights, the pairs' tokens, the chat template and the dtype of
the arithmetic; and nothing of the run that made them. The numbers lie in pieces, ``pairs-00000.safetensors`` and on:
``digests`` uint8 [n, 16], one for each pair's tokens, ``chosen`` and ``rejected`` float32 [n]. A piece is written
whole or not at all, so a computation that was cut short goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file

from hybrid_ft.errors import NUMERICS, InputError
from hybrid_ft.finetune.data.packing import pack
from hybrid_ft.finetune.runs import lock
from hybrid_ft.finetune.runs.atomic import sha256, write_text
from hybrid_ft.finetune.runs.identity import digest, short_digest
from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.training.dpo.batches import Pair, tokens_of
from hybrid_ft.hybrid_model.checkpoint.weight_files import give_usual_mode

PIECE = 512
"""Pairs of one piece: what is lost at most when the computation is cut short."""

Values = dict[bytes, tuple[float, float]]
"""Log-probabilities of the chosen and the rejected answer by the pair's digest."""
Compute = Callable[[Sequence[Pair]], tuple[torch.Tensor, torch.Tensor]]

_MANIFEST = "reference.json"
_CALLED = {
    "weights": "the base's weights",
    "pairs": "the pairs",
    "chat_template": "the chat template",
    "dtype": "dtype",
}


def reference_key(
    model: torch.nn.Module, digests: Iterable[bytes], chat_template: str | None, dtype: str
) -> dict[str, str]:
    """What the reference's log-probabilities depend on. The order of the pairs, and how often one occurs, do not matter."""
    return {
        "weights": weights_digest(model),
        "pairs": digest(b"".join(sorted(set(digests)))),
        "chat_template": digest((chat_template or "").encode()),
        "dtype": dtype,
    }


def weights_digest(model: torch.nn.Module) -> str:
    """Of the model as it starts: of the base alone where its adapters are fresh, whose B is zero."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    state = plain.state_dict()
    trained = any(bool(tensor.any()) for name, tensor in state.items() if ".lora_B." in name)
    tensors = {
        name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if trained or ".lora_" not in name
    }

    def of_tensor(name: str) -> bytes:
        tensor = tensors[name].detach().cpu().contiguous()
        found = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        if tensor.numel():
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return found.digest()

    # hashlib lets go of the interpreter lock for large buffers
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return digest(b"".join(pool.map(of_tensor, sorted(tensors))))


def digests_of(pairs: Dataset) -> list[bytes]:
    """For each pair 16 bytes that stand for its tokens."""
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    digests = []
    for batch in pairs.with_format("numpy", columns=columns).iter(1000):
        for sides in zip(*(batch[column] for column in columns), strict=True):
            parts = [np.asarray(side, dtype=np.int64).tobytes() for side in sides]
            digests.append(hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in parts)).digest()[:16])
    return digests


class ReferenceCache:
    """The folder of one reference's log-probabilities. ``key``: what they depend on, as ``reference_key`` makes it."""

    def __init__(self, folder: str | Path, key: dict[str, str]) -> None:
        self.folder, self.key = Path(folder), key

    def check(self) -> None:
        """Raise InputError for a folder that holds another reference, or something else; it may be empty or absent."""
        manifest = self.folder / _MANIFEST
        if not manifest.exists():
            foreign = self.folder.is_dir() and sorted(p.name for p in self.folder.iterdir() if p.name[0] != ".")
            if foreign:
                raise InputError(
                    f"dpo.reference_cache: {self.folder} holds {foreign[0]} and no {_MANIFEST}; give another folder"
                )
            return
        known = self._manifest()["key"]
        changed = [name for name in self.key if known.get(name) != self.key[name]]
        if changed:
            first = changed[0]
            names = ", ".join(_CALLED[name] for name in changed)
            raise InputError(
                f"dpo.reference_cache: {self.folder} is the reference of another run: {names} differ "
                f"({first} was {short_digest(known.get(first))}, is {short_digest(self.key[first])}); "
                "give another folder, or delete this one to compute it anew"
            )

    def fill(
        self,
        pairs: Dataset,
        digests: Sequence[bytes],
        batch_tokens: int,
        compute: Compute,
        say: Callable[[str], None],
        show: Callable[[int, int], None] = lambda done, total: None,
        processes: Processes | None = None,
    ) -> Values:
        """The values of all pairs; those that are not in the folder are computed, piece by piece, and written.

        ``compute`` gets micro-batches of at most ``batch_tokens``. Several processes share the pieces; number 0 reads
        and writes. Raises InputError for a value that is not finite.
        """
        processes = processes or Processes()
        with self._opened(say) if processes.main else nullcontext():
            values, total = processes.of_main(self._read(say) if processes.main else None), len(pairs)
            missing = {digest: row for row, digest in enumerate(digests) if digest not in values}
            rows = sorted(missing.values())
            pieces = [rows[start : start + PIECE] for start in range(0, len(rows), PIECE)]
            for turn in range(0, len(pieces), processes.count):
                show(total - len(rows) + turn * PIECE, total)
                mine = pieces[turn + processes.rank] if turn + processes.rank < len(pieces) else []
                named = [digests[row] for row in mine]
                for found in processes.gather(_computed(list(pairs.select(mine)), named, batch_tokens, compute)):
                    values |= found
                    if found and processes.main:
                        self._add(found)
            show(total, total)
        return values

    @contextmanager
    def _opened(self, say: Callable[[str], None]) -> Iterator[None]:
        waiting = f"{self.folder}: another run is computing this reference; waiting for it"
        with lock.held(self.folder, "dpo.reference_cache", lambda: say(waiting)):
            self.check()
            if not (self.folder / _MANIFEST).exists():
                self._write({"key": self.key, "pieces": {}})
            yield

    def _add(self, values: Values) -> None:
        manifest = self._manifest()
        name = f"pairs-{len(manifest['pieces']):05}.safetensors"
        while name in manifest["pieces"]:
            name = f"pairs-{int(name[6:11]) + 1:05}.safetensors"
        columns = {
            "digests": torch.from_numpy(np.frombuffer(b"".join(values), dtype=np.uint8).reshape(-1, 16).copy()),
            "chosen": torch.tensor([value[0] for value in values.values()], dtype=torch.float32),
            "rejected": torch.tensor([value[1] for value in values.values()], dtype=torch.float32),
        }
        staged = self.folder / f".{name}"
        save_file(columns, staged)
        give_usual_mode([staged])
        manifest["pieces"][name] = sha256([staged])[staged]
        os.replace(staged, self.folder / name)
        self._write(manifest)

    def _read(self, say: Callable[[str], None]) -> Values:
        manifest = self._manifest()
        values: Values = {}
        for name, listed in list(manifest["pieces"].items()):
            path = self.folder / name
            if not path.is_file() or sha256([path])[path] != listed:
                say(f"{path}: missing or damaged; its pairs are computed anew")
                del manifest["pieces"][name]
                self._write(manifest)
                continue
            columns = load_file(path)
            digests = columns["digests"].numpy()
            for row, *both in zip(digests, columns["chosen"].tolist(), columns["rejected"].tolist(), strict=True):
                values[row.tobytes()] = (both[0], both[1])
        return values

    def _manifest(self) -> dict[str, Any]:
        path = self.folder / _MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(manifest["key"], dict) and isinstance(manifest["pieces"], dict):
                return manifest
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise InputError(f"dpo.reference_cache: {path} is damaged; delete the folder")

    def _write(self, manifest: dict[str, Any]) -> None:
        write_text(self.folder / _MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _computed(pairs: list[Pair], digests: list[bytes], batch_tokens: int, compute: Compute) -> Values:
    values: Values = {}
    for portion in pack([tokens_of(pair) for pair in pairs], batch_tokens):
        chosen, rejected = compute([pairs[number] for number in portion])
        for number, *both in zip(portion, chosen.tolist(), rejected.tolist(), strict=True):
            if not np.isfinite(both).all():
                name = pairs[number].get("origin", "a pair")
                raise InputError(f"{name}: the base's log-probabilities are {both[0]} and {both[1]}", NUMERICS)
            values[digests[number]] = (both[0], both[1])
    return values


def with_reference(pairs: Dataset, digests: Sequence[bytes], values: Values) -> Dataset:
    """The pairs with the columns ``ref_chosen_logps`` and ``ref_rejected_logps`` (float32), and ``row``, their number."""
    both = np.asarray([values[digest] for digest in digests], dtype=np.float32).reshape(-1, 2)
    pairs = pairs.add_column("ref_chosen_logps", both[:, 0])
    pairs = pairs.add_column("ref_rejected_logps", both[:, 1])
    return pairs.add_column("row", np.arange(len(pairs)))
