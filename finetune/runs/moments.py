"""What an optimizer keeps of each trained number between steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_ADAMW, _SMALL, _MUON = 8, 5, 4
"""bytes: two moments in float32; two in bfloat16, and the bits that a weight in bfloat16 has no room
for; one in float32"""


def muons_matrices(model: Any) -> list[nn.Parameter]:
    """Of the trained parameters those of layers that have two dimensions. Embedding and head, whose rows are tokens,
    are not among them."""
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
    return [one for one in model.parameters() if one.requires_grad and one.ndim == 2 and id(one) not in ends]


def moment_bytes(model: nn.Module, optimizer: str = "adamw") -> int:
    """``optimizer``: the recipe's name of it. Weights that are trained in bfloat16 are adamw_bf16's in any case."""
    trained = [one for one in model.parameters() if one.requires_grad]
    if optimizer == "muon":
        saved = (_ADAMW - _MUON) * sum(one.numel() for one in muons_matrices(model))
        return _ADAMW * sum(one.numel() for one in trained) - saved
    return sum((_SMALL if one.element_size() == 2 else _ADAMW) * one.numel() for one in trained)


def step_bytes(model: nn.Module, optimizer: str = "adamw") -> int:
    """What a step makes and lets go again, at most: of Muon's largest matrix [n, m] the update in float32, two copies
    in bfloat16 and two products [n, n]. The others' steps, fused, make nothing."""
    if optimizer != "muon":
        return 0
    return max((8 * one.numel() + 4 * min(one.shape) ** 2 for one in muons_matrices(model)), default=0)
