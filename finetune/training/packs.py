"""A dataset of packs, each assembled from its rows on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasets import Dataset

from hybrid_ft.hybrid_model.door.layout import build_layout

FILLER = -1
"""In a pack's place: the first row without any label, for a process that is left without a batch."""


def packs_dataset(rows: Dataset, packs: list[list[int]]) -> Dataset:
    """A dataset of packs, in the order given, of ``rows`` with ``input_ids`` and ``labels``.

    Each has ``input_ids`` and ``labels`` [T], ``seq_lengths`` (tokens of each row) and ``rows`` (their indices). A pack
    is put together when it is asked for; no token is stored twice.
    """
    tokens = rows.select_columns(["input_ids", "labels"])

    def put_together(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "seq_lengths": [], "rows": []}
        for pack in batch["pack"]:
            filler = pack == [FILLER]
            members = tokens[[0] if filler else pack]
            ids, labels = ([token for row in members[name] for token in row] for name in ("input_ids", "labels"))
            columns["input_ids"].append(ids)
            columns["labels"].append([-100] * len(ids) if filler else labels)
            columns["seq_lengths"].append([len(row) for row in members["input_ids"]])
            columns["rows"].append([] if filler else pack)
        return columns

    return Dataset.from_dict({"pack": packs}).with_transform(put_together)


def collate_with_rows(
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]], examples: list[dict[str, Any]]
) -> dict[str, Any]:
    """TRL's batch, and ``rows``: the indices of the training rows in it; of packs also their ``layout``.

    Made here, the layout costs the model no wait for a GPU, which the same bounds in ``position_ids`` would.
    """
    batch = collate(examples)
    batch["rows"] = [row for example in examples for row in example["rows"]]
    if "attention_mask" not in batch:  # packed, not padded
        batch["layout"] = build_layout([length for example in examples for length in example["seq_lengths"]])
    return batch
