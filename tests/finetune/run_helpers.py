"""What tests of training share: an adapter, transformers' own model, and a hand on the loss of every micro-batch."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

LORA = {"lora": {"targets": "all-linear", "rank": 4, "alpha": 8, "dropout": 0.1, "merge": True}}


def plain_model(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    from transformers import OlmoHybridForCausalLM

    return OlmoHybridForCausalLM.from_pretrained(folder, dtype=dtype)


def wrap_loss(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """``change(trainer, inputs, loss)`` sees every micro-batch of the training and gives the loss that counts."""
    from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer

    compute_loss = PackedSFTTrainer.compute_loss

    def wrapped(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        given = dict(inputs)
        return change(self, given, compute_loss(self, model, inputs, *args, **kwargs))

    monkeypatch.setattr(PackedSFTTrainer, "compute_loss", wrapped)


def rows_in(batch: dict[str, Any]) -> list[tuple[int, ...]]:
    """The rows of a micro-batch as the model can tell them apart."""
    ids = batch["input_ids"]
    if "cu_seq_lens_q" in batch:
        edges = batch["cu_seq_lens_q"].tolist()
        return [tuple(ids[0, a:b].tolist()) for a, b in itertools.pairwise(edges)]
    return [tuple(row[mask.bool()].tolist()) for row, mask in zip(ids, batch["attention_mask"], strict=True)]
