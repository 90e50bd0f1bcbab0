"""Whether two implementations of a model give the same logits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from hybrid_ft.hybrid_model.checkpoint.torch_functions import torch_functions

# relative L2 between two implementations' logits; a wrong norm eps alone moves them by 0.38
_TOLERANCE = 1e-4
_MOST = 1e-2
"""In float32, however much a model blows rounding up."""


@torch.no_grad()
def difference_of_logits(ours: PreTrainedModel, plain: PreTrainedModel, tokens: torch.Tensor, folder: Path) -> float:
    """Relative L2 difference of the logits of ``tokens``, of transformers' own model from ``folder`` and ours of the
    same weights, both in eval mode; ``plain`` may come back in float64.

    Raises RuntimeError beyond 1e-4. A model that blows rounding up to that in float32 is compared in
    float64, on the CPU.
    """
    difference = _difference(ours, plain, tokens)
    if _TOLERANCE < difference <= _MOST:
        with _InFloat64():
            difference = _difference(_double(copy.deepcopy(ours).cpu()), _double(plain), tokens)
    if not difference <= _TOLERANCE:
        raise RuntimeError(f"{folder}: logits differ by {difference:.1e} from the model's (at most {_TOLERANCE:.0e})")
    return difference


def _double(model: PreTrainedModel) -> PreTrainedModel:
    model.set_experts_implementation("eager")  # torch's grouped product takes no float64
    return model.double()


class _InFloat64(TorchFunctionMode):
    """float64 wherever a model's code casts to float32, as in norms, gates and scans."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(_wide, args), **{key: _wide(value) for key, value in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _difference(ours: PreTrainedModel, plain: PreTrainedModel, tokens: torch.Tensor) -> float:
    with torch_functions():
        theirs = plain(tokens, use_cache=False).logits.double()
        found = ours(tokens.to(ours.device), use_cache=False).logits.double().cpu()
    return float((found - theirs).norm() / theirs.norm())
