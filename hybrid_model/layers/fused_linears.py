"""Several linear layers over the same input in one product, for a token or a few on a CPU.

A small product costs less than calling it: at a hidden size of 128 the six projections of a delta layer take four times
as long one by one as together. Layers of a million weights and more gain nothing and are left as they are, so that no
second copy of a large model is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

_MOST_WEIGHTS = 2**20


class Joined:
    """The joined weights of one group of layers, made again when a layer or its weight has changed."""

    def __init__(self) -> None:
        self.parts: tuple[tuple[nn.Module, torch.Tensor, int], ...] = ()
        self.weight: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, layers: Sequence[nn.Module]) -> torch.Tensor:
        """[B, D] -> [B, sum of the layers' outputs], in order. Gradients do not reach joined weights."""
        if not self._current(layers):
            self._join(layers)
        if self.weight is None:
            return torch.cat([layer(x) for layer in layers], dim=-1)
        return F.linear(x, self.weight)

    def _current(self, layers: Sequence[nn.Module]) -> bool:
        """Compared by identity and by version, which every change in place counts up."""
        if len(self.parts) != len(layers):
            return False
        for layer, (module, weight, version) in zip(layers, self.parts):
            if layer is not module or layer._parameters.get("weight") is not weight or weight._version != version:
                return False
            if layer._forward_hooks or layer._forward_pre_hooks:
                return False
        return True

    def _join(self, layers: Sequence[nn.Module]) -> None:
        self.parts, self.weight = (), None
        weights: list[torch.Tensor] = []
        for layer in layers:
            # an adapter, a bias, an offloading hook: more than a weight
            if type(layer) is not nn.Linear or layer.bias is not None or "forward" in layer.__dict__:
                return
            if (
                layer._forward_hooks
                or layer._forward_pre_hooks
                or not layer.weight.is_cpu
                or layer.weight.is_inference()
            ):
                return
            weights.append(layer.weight)
        if sum(weight.numel() for weight in weights) < _MOST_WEIGHTS:
            self.parts = tuple((layer, weight, weight._version) for layer, weight in zip(layers, weights))
            self.weight = torch.cat(weights).detach()
