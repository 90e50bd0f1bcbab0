"""The layout at work, for layers whose signature has no place for it.

A base model sets it around its layers. Each decoder layer takes it along as an argument of its own, so that a layer
that is computed again in backward sees the layout of its batch, whatever ran in between.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager

from hybrid_ft.hybrid_model.door.layout import SequenceLayout

_LAYOUT: contextvars.ContextVar[SequenceLayout | None] = contextvars.ContextVar("layout", default=None)


def current_layout() -> SequenceLayout | None:
    """None outside a flat forward: a call with a cache runs as transformers wrote it."""
    return _LAYOUT.get()


@contextmanager
def laid_out(layout: SequenceLayout | None) -> Iterator[None]:
    """Set the layout for what is computed inside."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)
