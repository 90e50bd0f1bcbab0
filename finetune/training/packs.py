"""A dataset of packs, each assembled from its rows on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset

from hybrid_ft.hybrid_model.door.layout import build_layout

FILLER = -1
"""In a pack's place: the first row without any label, for a process that is left without a batch."""


def packs_dataset(rows: Dataset, packs: list[list[int]]) -> Dataset:
    """A dataset of packs, in the order given, of ``rows`` with ``input_ids`` and ``labels``, and ``weights`` if any.

    Each has ``input_ids`` and ``labels`` [T], ``weights`` [T] ([] where all are 1), ``seq_lengths`` (tokens of each
    row) and ``rows`` (their indices). A pack is put together when it is asked for; no token is stored twice.
    """
    weighted = "weights" in rows.column_names
    tokens = rows.select_columns(["input_ids", "labels"] + ["weights"] * weighted)

    def put_together(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "weights": [], "seq_lengths": [], "rows": []}
        for pack in batch["pack"]:
            # a process without a batch computes all the same, or the others would wait for its gradients
            filler = pack == [FILLER]
            members = tokens[[0] if filler else pack]
            ids, labels = ([token for row in members[name] for token in row] for name in ("input_ids", "labels"))
            columns["input_ids"].append(ids)
            columns["labels"].append([-100] * len(ids) if filler else labels)
            weights = members["weights"] if weighted else []
            columns["weights"].append(_joined(weights, members["input_ids"]) if any(weights) else [])
            columns["seq_lengths"].append([len(row) for row in members["input_ids"]])
            columns["rows"].append([] if filler else pack)
        return columns

    return Dataset.from_dict({"pack": packs}).with_transform(put_together)


def _joined(weights: list[list[float]], ids: list[list[int]]) -> list[float]:
    """The weights of a pack's tokens; a row that has none weighs 1."""
    return [weight for own, row in zip(weights, ids, strict=True) for weight in own or [1.0] * len(row)]


def collate_with_rows(
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]], examples: list[dict[str, Any]]
) -> dict[str, Any]:
    """TRL's batch, and ``rows``: the indices of the training rows in it; of packs also their ``layout``.

    ``weights`` [B, T], as ``labels``, is there where a token weighs other than 1 in the loss.

    Made here, the layout costs the model no wait for a GPU, which the same bounds in ``position_ids`` would.
    """
    batch = collate(examples)
    batch["rows"] = [row for example in examples for row in example["rows"]]
    if any(example.get("weights") for example in examples):
        batch["weights"] = _weights_of(batch["input_ids"].shape, examples)
    if "attention_mask" not in batch:  # packed, not padded
        batch["layout"] = build_layout([length for example in examples for length in example["seq_lengths"]])
    return batch


def _weights_of(shape: torch.Size, examples: list[dict[str, Any]]) -> torch.Tensor:
    """Rows laid as TRL's collator lays their tokens: end to end in one, or each padded on the right."""
    rows = [example["weights"] or [1.0] * len(example["input_ids"]) for example in examples]
    if shape[0] == 1:
        rows = [[weight for row in rows for weight in row]]
    weights = torch.ones(shape, dtype=torch.float32)
    for row, own in zip(weights, rows, strict=True):
        row[: len(own)] = torch.tensor(own)
    return weights
