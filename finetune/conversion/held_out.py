"""The loss of a model on a file of conversations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hybrid_ft.finetune.data.streaming.prepared import prepare
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer
from hybrid_ft.hybrid_model.checkpoint.torch_functions import torch_functions


@dataclass(frozen=True)
class HeldOut:
    """Rows with ``input_ids`` and ``labels`` (-100: not counted); ``said``: what they are, for the screen."""

    rows: list[tuple[list[int], list[int]]]
    said: str

    @classmethod
    def read(cls, path: str, model: Path) -> HeldOut:
        """Raises InputError for rows that could not be trained on either."""
        recipe = Recipe.model_validate({"model": {"path": str(model)}, "data": {"sources": [{"path": path}]}})
        prepared = prepare(recipe, load_tokenizer(model))
        rows = list(zip(prepared.train["input_ids"], prepared.train["labels"], strict=True))
        return cls(rows, f"{len(rows):,} rows of {path}")

    @torch.no_grad()
    def loss(self, model: Any) -> float:
        """Negative log-likelihood per trained token, each row alone."""
        total, tokens = 0.0, 0
        with torch_functions():
            for ids, labels in self.rows:
                logits = model(torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
                targets = torch.tensor(labels[1:])
                kept = targets != -100
                total += float(torch.nn.functional.cross_entropy(logits[kept], targets[kept], reduction="sum"))
                tokens += int(kept.sum())
        return total / max(tokens, 1)
