"""How many steps a run takes, and how many micro-batches a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Recipe


@dataclass(frozen=True)
class Plan:
    """Optimizer steps: of an epoch, of the whole run, and of its warm-up.

    The last step of an epoch may be smaller than the others, so that no row is lost.
    """

    per_epoch: int
    steps: int
    warmup: int

    @classmethod
    def of(cls, recipe: Recipe, portions: int, a_step: int) -> Plan:
        """``portions`` of an epoch (micro-batches, or pairs), of which a step takes ``a_step``."""
        per_epoch = math.ceil(portions / a_step)
        steps = recipe.train.steps or math.ceil(recipe.train.epochs * per_epoch)
        return cls(per_epoch, steps, math.floor(recipe.train.warmup * steps))

    @classmethod
    def of_stream(cls, recipe: Recipe) -> Plan:
        """The run is one epoch: where a stream ends is not known."""
        steps = recipe.train.steps or 1
        return cls(steps, steps, math.floor(recipe.train.warmup * steps))


def a_step(recipe: Recipe) -> int:
    """Micro-batches of an optimizer step, over all processes."""
    train = recipe.train
    if train.tokens_per_step is not None:
        return train.tokens_per_step // train.batch_tokens
    if train.rows_per_step is not None:
        return train.rows_per_step // train.batch_size
    return train.accumulation
