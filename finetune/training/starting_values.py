"""The values a model starts with, kept beside those it is trained to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StartingValues:
    """A copy of every trained parameter; what is frozen keeps its values anyway. Of a model in pieces each process
    has those of its own."""

    def __init__(self, model: torch.nn.Module) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._both = [(parameter, parameter.detach().clone()) for parameter in trained]

    @contextmanager
    def put_in(self) -> Iterator[None]:
        """Inside the block the model has them. Not while a backward is to come: it would read them."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, kept in self._both:
            now = parameter.detach().clone()
            parameter.copy_(kept)
            kept.copy_(now)
