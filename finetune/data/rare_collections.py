"""Python's search for circles of garbage, less often while rows come and go."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 100_000
"""Between two searches. Rows leave no circles, and Python's own 700 make a tenth of the time and
more go to searches."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Search rarely in the block; what was set before, more rarely still or never, is kept."""
    before = gc.get_threshold()
    if 0 < before[0] < NEW_OBJECTS:
        gc.set_threshold(NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
