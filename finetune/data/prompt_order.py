"""A random order of rows, those of one prompt side by side."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def order_of(prompts: Sequence[Hashable], seed: int | Sequence[int]) -> list[int]:
    """The rows in a random order in which answers to one prompt stand side by side."""
    of_prompt: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompts):
        of_prompt.setdefault(prompt, []).append(row)
    groups = list(of_prompt.values())
    return [row for group in np.random.default_rng(seed).permutation(len(groups)) for row in groups[group]]
