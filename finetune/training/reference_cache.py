"""The reference's log-probabilities of every answer, computed once and shared.

``reference.json`` says what they belong to: the base's weights, the rows' tokens, the chat template and the dtype of
the arithmetic; and nothing of the run that made them. The numbers lie in pieces, ``pairs-00000.safetensors`` and on:
``digests`` uint8 [n, 16], one for each row's tokens, and float32 [n] for each of its answers, of pairs ``chosen`` and
``rejected``. A piece is written whole or not at all, so a computation that was cut short goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file

from hybrid_ft.errors import NUMERICS, InputError
from hybrid_ft.finetune.runs import lock
from hybrid_ft.finetune.runs.atomic import sha256, write_text
from hybrid_ft.finetune.runs.identity import digest, short_digest
from hybrid_ft.finetune.runs.processes import Processes, whole
from hybrid_ft.finetune.runs.team import Team
from hybrid_ft.finetune.runs.weights import is_divided
from hybrid_ft.finetune.training.portions import Row
from hybrid_ft.finetune.training.shared_prompts import divided
from hybrid_ft.hybrid_model.checkpoint.usual_mode import give_usual_mode

PIECE = 512
"""Rows of one piece: what is lost at most when the computation is cut short."""

Values = dict[bytes, tuple[float, ...]]
"""Log-probabilities of a row's answers by its digest."""
Compute = Callable[[Sequence[Row]], tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Kind:
    """Of what there are log-probabilities.

    section  of the recipe
    what     the rows are called
    tokens   the columns of tokens that they depend on
    values   their names in a piece
    """

    section: str
    what: str
    tokens: tuple[str, ...]
    values: tuple[str, ...]


PAIRS = Kind("dpo", "pairs", ("prompt_ids", "chosen_ids", "rejected_ids"), ("chosen", "rejected"))
ANSWERS = Kind("kto", "answers", ("prompt_ids", "completion_ids"), ("completion",))

_MANIFEST = "reference.json"
_CALLED = {
    "weights": "the base's weights",
    "pairs": "the pairs",
    "answers": "the answers",
    "chat_template": "the chat template",
    "dtype": "dtype",
}


def reference_key(
    model: torch.nn.Module,
    digests: Iterable[bytes],
    chat_template: str | None,
    dtype: str,
    kind: Kind = PAIRS,
    processes: Processes | None = None,
) -> dict[str, str]:
    """What the reference's log-probabilities depend on. The order of the rows, and how often one occurs, do not matter.
    All ``processes`` together: number 0 has the model's values, whole, or all have pieces of it."""
    processes = processes or Processes()
    return {
        "weights": processes.of_main(weights_digest(model, processes.main)),
        kind.what: digest(b"".join(sorted(set(digests)))),
        "chat_template": digest((chat_template or "").encode()),
        "dtype": dtype,
    }


def weights_digest(model: torch.nn.Module, wanted: bool = True) -> str:
    """Of the model as it starts: of the base alone where its adapters are fresh, whose B is zero. Of one in pieces it
    is that of the whole. ``wanted``: False where a process only gives its pieces."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    state = plain.state_dict()
    if not wanted and not is_divided(plain):
        return ""
    trained = any(bool(whole(tensor).any()) for name, tensor in state.items() if ".lora_B." in name)
    tensors = {
        name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if trained or ".lora_" not in name
    }

    def of_tensor(name: str, tensor: torch.Tensor) -> bytes:
        tensor = tensor.detach().cpu().contiguous()
        found = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        if tensor.numel():
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return found.digest()

    names, threads, found = sorted(tensors), min(8, os.cpu_count() or 1), []
    # hashlib lets go of the interpreter lock for large buffers
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for start in range(0, len(names), threads):
            some = names[start : start + threads]
            put_together = [whole(tensors[name]) for name in some]  # the same in every process, so never side by side
            found += list(pool.map(of_tensor, some, put_together)) if wanted else []
    return digest(b"".join(found))


def digests_of(rows: Dataset, kind: Kind = PAIRS) -> list[bytes]:
    """For each row 16 bytes that stand for its tokens."""
    digests = []
    for batch in rows.with_format("numpy", columns=list(kind.tokens)).iter(1000):
        digests += [digest_of_tokens(parts) for parts in zip(*(batch[name] for name in kind.tokens), strict=True)]
    return digests


def digest_of_tokens(sides: Iterable[Any]) -> bytes:
    """16 bytes that stand for some lists of tokens, none of which can move from one list to the next."""
    parts = [np.asarray(side, dtype=np.int64).tobytes() for side in sides]
    return hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in parts)).digest()[:16]


class ReferenceCache:
    """The folder of one reference's log-probabilities. ``key``: what they depend on, as ``reference_key`` makes it."""

    def __init__(self, folder: str | Path, key: dict[str, str], kind: Kind = PAIRS) -> None:
        self.folder, self.key, self.kind = Path(folder), key, kind
        self.where = f"{kind.section}.reference_cache"

    def check(self) -> None:
        """Raise InputError for a folder that holds another reference, or something else; it may be empty or absent."""
        manifest = self.folder / _MANIFEST
        if not manifest.exists():
            foreign = self.folder.is_dir() and sorted(p.name for p in self.folder.iterdir() if p.name[0] != ".")
            if foreign:
                raise InputError(
                    f"{self.where}: {self.folder} holds {foreign[0]} and no {_MANIFEST}; give another folder"
                )
            return
        known = self._manifest()["key"]
        changed = [name for name in self.key if known.get(name) != self.key[name]]
        if changed:
            first = changed[0]
            names = ", ".join(_CALLED[name] for name in changed)
            raise InputError(
                f"{self.where}: {self.folder} is the reference of another run: {names} differ "
                f"({first} was {short_digest(known.get(first))}, is {short_digest(self.key[first])}); "
                "give another folder, or delete this one to compute it anew"
            )

    def fill(
        self,
        rows: Dataset,
        digests: Sequence[bytes],
        batch_tokens: int,
        compute: Compute,
        say: Callable[[str], None],
        show: Callable[[int, int], None] = lambda done, total: None,
        processes: Processes | None = None,
        team: Team | None = None,
        in_step: bool = False,
    ) -> Values:
        """The values of all rows; those that are not in the folder are computed, piece by piece, and written.

        ``compute`` gets micro-batches of at most ``batch_tokens``, rows of one prompt together, and gives float32
        [rows] for each of the answers. Several processes share the pieces, or their teams do; number 0 reads and
        writes. With ``in_step`` each calls it as often as the others, as a model in pieces needs. Raises InputError for
        a value that is not finite.
        """
        processes = processes or Processes()
        team = team or Team.of(processes)
        with self._opened(say) if processes.main else nullcontext():
            values, total = processes.of_main(self._read(say) if processes.main else None), len(rows)
            missing = {digest: row for row, digest in enumerate(digests) if digest not in values}
            wanted = sorted(missing.values())
            pieces = [wanted[start : start + PIECE] for start in range(0, len(wanted), PIECE)]
            for turn in range(0, len(pieces), team.count):
                show(total - len(wanted) + turn * PIECE, total)
                mine = pieces[turn + team.number] if turn + team.number < len(pieces) else []
                named = [digests[row] for row in mine]
                members = list(rows.select(mine))
                portions = divided(members, self.kind.tokens[1:], batch_tokens)
                most = max(processes.gather(len(portions))) if in_step else 0
                computed = _computed(members, named, portions, compute)
                for _ in range(most - len(portions)):
                    compute(list(rows.select(wanted[:1])))  # what the others wait for
                for found in processes.gather(computed if team.speaks else {}):
                    values |= found
                    if found and processes.main:
                        self._add(found)
            show(total, total)
        return values

    @contextmanager
    def _opened(self, say: Callable[[str], None]) -> Iterator[None]:
        waiting = f"{self.folder}: another run is computing this reference; waiting for it"
        with lock.held(self.folder, self.where, lambda: say(waiting)):
            self.check()
            if not (self.folder / _MANIFEST).exists():
                self._write({"key": self.key, "pieces": {}})
            yield

    def _add(self, values: Values) -> None:
        manifest = self._manifest()
        number = len(manifest["pieces"])
        while (name := f"{self.kind.what}-{number:05}.safetensors") in manifest["pieces"]:
            number += 1
        columns = {
            "digests": torch.from_numpy(np.frombuffer(b"".join(values), dtype=np.uint8).reshape(-1, 16).copy()),
        }
        for name_of, column in zip(self.kind.values, zip(*values.values(), strict=True), strict=True):
            columns[name_of] = torch.tensor(column, dtype=torch.float32)
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
                say(f"{path}: missing or damaged; its {self.kind.what} are computed anew")
                del manifest["pieces"][name]
                self._write(manifest)
                continue
            columns = load_file(path)
            digests = columns["digests"].numpy()
            for row, *found in zip(digests, *(columns[name].tolist() for name in self.kind.values), strict=True):
                values[row.tobytes()] = tuple(found)
        return values

    def _manifest(self) -> dict[str, Any]:
        path = self.folder / _MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(manifest["key"], dict) and isinstance(manifest["pieces"], dict):
                return manifest
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise InputError(f"{self.where}: {path} is damaged; delete the folder")

    def _write(self, manifest: dict[str, Any]) -> None:
        write_text(self.folder / _MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _computed(rows: list[Row], digests: list[bytes], portions: list[list[int]], compute: Compute) -> Values:
    values: Values = {}
    for portion in portions:
        answers = compute([rows[number] for number in portion])
        for number, *found in zip(portion, *(answer.tolist() for answer in answers), strict=True):
            if not np.isfinite(found).all():
                name, shown = rows[number].get("origin", "a row"), " and ".join(map(str, found))
                raise InputError(f"{name}: the base's log-probabilities are {shown}", NUMERICS)
            values[digests[number]] = tuple(found)
    return values


def with_reference(pairs: Dataset, digests: Sequence[bytes], values: Values) -> Dataset:
    """The pairs with the columns ``ref_chosen_logps`` and ``ref_rejected_logps`` (float32), and ``row``, their
    number."""
    both = np.asarray([values[digest] for digest in digests], dtype=np.float32).reshape(-1, 2)
    pairs = pairs.add_column("ref_chosen_logps", both[:, 0])
    pairs = pairs.add_column("ref_rejected_logps", both[:, 1])
    return pairs.add_column("row", np.arange(len(pairs)))
