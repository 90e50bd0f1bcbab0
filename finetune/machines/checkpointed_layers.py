"""Which layers gradient checkpointing leaves out: as many as memory allows.

Attention's layers come first: they hold about as much as the delta rule's and take longer to compute again. Of one kind
the last come first, whose activations are the first to go in backward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.machines.memory import MARGIN, Batch, peak
from hybrid_ft.finetune.machines.shape import Shape
from hybrid_ft.hybrid_model.families.known import FAMILIES

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Recipe

OUTSIDE = 2e9
"""bytes outside torch's tensors: CUDA's context, NCCL's buffers, gaps in the allocator; 1 to 3 GB as people report"""


def left_out(recipe: Recipe, shape: Shape, batch: Batch, gpus: int, room: float) -> frozenset[int]:
    """Numbers of the layers that keep their activations on GPUs with ``room`` bytes each.

    Nothing is checkpointed without ``model.gradient_checkpointing``, and then nothing is left out of it. Raises
    InputError for more layers than there are, and for ``auto`` where what a layer keeps is not known.
    """
    wanted, how = recipe.model.checkpointed_layers, recipe.model.gradient_checkpointing
    if wanted is None or how is False:
        return frozenset()
    order, count = _order(shape), len(shape.layers)
    if wanted != "auto":
        if wanted > count:
            raise InputError(
                f"model.checkpointed_layers: got {wanted}; the model has {count} layers, so it must be at most {count}"
            )
        return frozenset(order[: count - wanted])
    if not shape.proven:
        known = " and ".join(family.name for family in FAMILIES if family.step is not None)
        raise InputError(
            "model.checkpointed_layers: auto must be a number here: what a layer keeps is known with all weights or plain "
            f"LoRA, of {known} alone; set how many layers are computed again, or leave the key out"
        )
    kept: frozenset[int] = frozenset()
    for number in range(count):
        more = frozenset(order[: number + 1])
        if not fits(peak(shape, batch, gpus, bool(recipe.train.sharded), how, more).total, room):
            break
        kept = more
    return kept


def fits(bytes: float, room: float) -> bool:
    """With certainty: the reckoning's margin and what lies outside torch's tensors go in as well."""
    return bytes * (1 + MARGIN) + OUTSIDE <= room


def _order(shape: Shape) -> list[int]:
    numbers = range(len(shape.layers) - 1, -1, -1)
    return sorted(numbers, key=lambda number: not shape.layers[number].attends)
