"""What a PEFT adapter makes of each tensor of its base."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.adapter_files import (
    CONFIG,
    WEIGHTS,
    adapted_weight,
    number,
    numbers,
    read_config,
    target_parameters,
    without_copies,
)
from hybrid_ft.hybrid_model.checkpoint.tensor_files import StoredTensor, row_blocks, stored_tensors

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_PREFIX = "base_model.model."
_PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "token_adapter.trainable_tokens_delta": "tokens",
}
_PART = re.compile(rf"(.+)\.({'|'.join(map(re.escape, _PARTS))})")
# What shapes the training alone, or is read here. Anything else that is set may change what the adapter computes.
_KNOWN = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "bias",
    "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "megatron_core", "trainable_token_indices", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "use_dora", "qalora_group_size", "runtime_config", "ensure_weight_tying",
    "target_parameters",
}  # fmt: skip
# Others take a part out of the base's weights when training begins; PEFT can write the adapter for the unchanged base.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass
class Change:
    """A weight of the base becomes ``whole`` if given, plus ``scale * b @ a``, with rows of length ``magnitude`` under
    DoRA; then the rows ``token_ids`` become ``tokens``. An embedding's ``a`` and ``b`` are those of its transpose. A
    weight of ``experts`` [E, out, in] has all their ``a`` [E rank, in] and ``b`` [out, rank E] in one."""

    whole: StoredTensor | None = None
    a: StoredTensor | None = None
    b: StoredTensor | None = None
    magnitude: StoredTensor | None = None
    scale: float = 1.0
    embedding: bool = False
    experts: int = 0
    tokens: StoredTensor | None = None
    token_ids: list[int] = field(default_factory=list)

    @property
    def rank(self) -> int:
        assert self.a is not None
        return self.a.rows // (self.experts or 1)

    def of_experts(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``a`` [n, rank, in] and ``b`` [n, out, rank] of experts ``start`` to ``stop``."""
        assert self.a is not None and self.b is not None
        a = self.a.read(start * self.rank, stop * self.rank).unflatten(0, (-1, self.rank))
        return a, self.b.read().unflatten(1, (self.rank, -1))[..., start:stop].permute(2, 0, 1)

    def applied(self, base: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` of the new weight from those of the base, computed in float32 or wider."""
        rows = base if self.whole is None else self.whole.read(start, stop)
        if self.a is not None and self.b is not None:
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            if self.embedding:
                factors = torch.cat([self.a.read(row, row + 1)[:, start:stop] for row in range(self.a.rows)])
                rows = rows + self.scale * (factors.to(rows.dtype).T @ self.b.read().to(rows.dtype).T)
            elif self.experts:
                a, b = self.of_experts(start, stop)
                rows = torch.baddbmm(rows, b.to(rows.dtype), a.to(rows.dtype), alpha=self.scale)
            else:
                rows = rows + self.scale * (self.b.read(start, stop).to(rows.dtype) @ self.a.read().to(rows.dtype))
            if self.magnitude is not None:
                length = self.magnitude.read(start, stop).to(rows.dtype)
                rows = rows * (length / rows.norm(dim=1)).unsqueeze(1)
        if self.tokens is not None:
            rows = rows.clone()
            for place, token in enumerate(self.token_ids):
                if start <= token < stop:
                    rows[token - start] = self.tokens.read(place, place + 1)[0].to(rows.dtype)
        return rows


@dataclass
class Changes:
    """``of``: by the tensor's name in memory; ``tied``: whether the head stays the embedding;
    ``vocabulary``: rows of it."""

    of: dict[str, Change]
    tied: bool
    vocabulary: int


def read_changes(folder: Path, shapes: dict[str, tuple[int, ...]], tied: bool, embedding: str = EMBEDDING) -> Changes:
    """The changes to a base whose tensors in memory have ``shapes``, and whose head is its ``embedding`` where
    ``tied``.

    Raises InputError for an adapter of another kind or another model, and where a merged model could not be the adapted
    one; the message gives the reason.
    """
    path, weights = folder / CONFIG, folder / WEIGHTS
    raw = read_config(folder)
    _check_settings(path, raw)
    changes: dict[str, Change] = {}
    held, parameters = stored_tensors(weights), target_parameters(path, raw)
    for name in without_copies(held):
        stored = held[name]
        if not name.startswith(_PREFIX):
            raise InputError(f"{weights}: tensor {name} does not begin with {_PREFIX}; PEFT did not write this file")
        match = _PART.fullmatch(name.removeprefix(_PREFIX))
        if match is None:
            whole = name.removeprefix(_PREFIX).replace(".token_adapter.", ".").replace(".base_layer.", ".")
            changes.setdefault(whole, Change()).whole = stored
        else:
            of = adapted_weight(match[1], parameters, shapes) or f"{match[1]}.weight"
            change = changes.setdefault(of, Change())
            if of != f"{match[1]}.weight" and len(shapes[of]) == 3:
                change.experts = shapes[of][0]
            change.embedding |= "embedding" in match[2]
            setattr(change, _PARTS[match[2]], stored)
    if tied and HEAD in changes and embedding in changes and changes[HEAD].whole is not None:
        # PEFT saves the trained rows of the embedding again as those of the head that it is
        changes[HEAD].tokens = None
    if not changes:
        raise InputError(f"{weights}: holds no weights of an adapter; it is damaged")
    vocabulary = _vocabulary(weights, changes, shapes[embedding][0], tied, embedding)
    for name, change in changes.items():
        module = name.removesuffix(".weight")  # of experts the parameter itself, which PEFT's patterns name
        if name not in shapes and not (tied and name == HEAD):
            raise InputError(
                f"{weights}: {name} is changed, and the base has no such tensor; the adapter is for another model"
            )
        shape = shapes[embedding if name == HEAD and tied else name]
        shape = (vocabulary, *shape[1:]) if name in (embedding, HEAD) else shape
        _check_shapes(weights, name, change, shape, raw.get("use_dora") is True)
        if change.a is not None:
            rank = change.rank
            said = _by_pattern(numbers(path, raw, "rank_pattern"), module, number(path, raw, "r", 8))
            if said != rank:
                raise InputError(
                    f"{weights}: {name} has rank {rank}, {CONFIG} says {said}; they do not belong together"
                )
            alpha = _by_pattern(numbers(path, raw, "alpha_pattern"), module, number(path, raw, "lora_alpha", 8))
            change.scale = alpha / (math.sqrt(rank) if raw.get("use_rslora") is True else rank)
        if change.tokens is not None:
            change.token_ids = _token_ids(
                path, raw.get("trainable_token_indices"), module, change.tokens.rows, shape[0]
            )
    return Changes(changes, tied and _stay_tied(weights, raw, changes, embedding), vocabulary)


def _check_settings(path: Path, raw: dict[str, Any]) -> None:
    fix = "merge it with what made it"
    for key, value in raw.items():
        if key not in _KNOWN and value not in (None, False, [], {}, ""):
            raise InputError(f"{path}: {key} is set, and what it changes is not known here; {fix}")
    if raw.get("bias", "none") not in ("none", "all", "lora_only"):
        raise InputError(f"{path}: bias is {str(raw['bias'])[:60]!r}; must be none, all or lora_only")
    start = raw.get("init_lora_weights")
    if start not in _STARTS:
        raise InputError(
            f"{path}: init_lora_weights is {str(start)[:60]!r}: it was trained on a base that PEFT had changed, and adding it to "
            "the base as it is would be another model; save it again with path_initial_model_for_weight_conversion"
        )


def _vocabulary(path: Path, changes: dict[str, Change], base: int, tied: bool, embedding: str) -> int:
    """Rows of the embedding, which PEFT saves whole where they are not the base's."""
    rows = {
        name: change.whole.rows
        for name in (embedding, HEAD)
        if (change := changes.get(name)) is not None and change.whole is not None
    }
    vocabulary = rows.get(embedding, base)
    if rows.get(HEAD, vocabulary if tied or vocabulary == base else base) != vocabulary:
        raise InputError(
            f"{path}: the embedding has {vocabulary} rows and the head {rows.get(HEAD, base)}; save the adapter with both "
            "(save_embedding_layers=True)"
        )
    return vocabulary


def _check_shapes(path: Path, name: str, change: Change, shape: tuple[int, ...], dora: bool) -> None:
    """Refuse parts that are missing or do not fit the weight."""
    expected: list[tuple[str, StoredTensor | None, tuple[int | None, ...]]] = [
        ("the whole weight", change.whole, shape)
    ]
    if change.a is not None or change.b is not None or change.magnitude is not None:
        if change.a is None or change.b is None:
            raise InputError(f"{path}: {name} has one of lora_A and lora_B alone; the file is not whole")
        rank, experts = change.rank, change.experts
        if dora != (change.magnitude is not None):
            raise InputError(f"{path}: {name} and use_dora in {CONFIG} do not agree on a lora_magnitude_vector")
        if len(shape) != (3 if experts else 2) or (dora and (change.embedding or experts)):
            raise InputError(f"{path}: {name}: {'DoRA on an embedding' if dora else 'LoRA on it'} cannot be merged")
        flipped = shape[::-1] if change.embedding else shape
        expected += [
            ("lora_A", change.a, (rank * (experts or 1), flipped[-1])),
            ("lora_B", change.b, (flipped[-2], rank * (experts or 1))),
            ("lora_magnitude_vector", change.magnitude, (shape[0],)),
        ]
    if change.tokens is not None:
        expected.append(("trainable_tokens_delta", change.tokens, (change.tokens.rows, *shape[1:])))
    for part, stored, wanted in expected:
        if stored is not None and stored.shape != wanted:
            got = f"{list(stored.shape)}; the base's weight {list(shape)} needs {list(wanted)}"
            raise InputError(f"{path}: {part} of {name} has shape {got}: the adapter is for another model")


def _by_pattern(values: dict[str, Any], module: str, default: Any) -> Any:
    """As PEFT chooses: the first name that the module's ends with."""
    for name, value in values.items():
        if re.match(rf"(.*\.)?({name})$", module):
            return value
    return default


def _token_ids(path: Path, given: Any, module: str, count: int, rows: int) -> list[int]:
    if isinstance(given, dict):
        given = next((ids for name, ids in given.items() if f".{module}".endswith(f".{name}")), None)
    if (
        not isinstance(given, list)
        or len(given) != count
        or any(type(token) is not int or not 0 <= token < rows for token in given)
    ):
        raise InputError(f"{path}: trainable_token_indices must be {count} ids below {rows}, one for each trained row")
    return given


def _stay_tied(path: Path, raw: dict[str, Any], changes: dict[str, Change], name: str) -> bool:
    """Whether the head of a base with tied embeddings is still its embedding. Raises InputError for one side alone."""
    embedding, head = changes.get(name), changes.get(HEAD)
    if embedding is None and head is None:
        return True
    if embedding is None or head is None:
        only = embedding or head
        assert only is not None
        # PEFT gives trained rows of the embedding to a tied head as well
        rows = only.a is None and (only.whole is None or only.tokens is not None)
        if raw.get("ensure_weight_tying") is True or (only is embedding and rows):
            return True
        side = "the head" if embedding is None else "the embedding"
        raise InputError(
            f"{path}: {side} alone is adapted, and in the base embedding and head are one tensor (tie_word_embeddings): "
            "merged, both would change; adapt both, or train with ensure_weight_tying"
        )
    plain = embedding.a is None and head.a is None and head.tokens is None
    return plain and _equal(embedding.whole, head.whole)


def _equal(one: StoredTensor | None, other: StoredTensor | None) -> bool:
    if one is None or other is None or one.dtype != other.dtype:
        return False
    return all(torch.equal(one.read(*rows), other.read(*rows)) for rows in row_blocks(one.shape))
