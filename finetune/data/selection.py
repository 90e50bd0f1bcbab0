"""Which usable rows are trained on: the mix, and the rows held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hybrid_ft.errors import InputError

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import HeldOut, Source


def mix_sources(
    source: np.ndarray,
    sources: Sequence[Source],
    seed: int,
    key: str = "data.sources",
    trained: np.ndarray | None = None,
    drawn: Sequence[bool] | None = None,
) -> np.ndarray:
    """Indices of the rows that the mix takes, in the order of the sources and their rows; none twice but by ``repeat``.

    ``source`` [rows] says which of ``sources`` a row is from. A ``count`` is a sample of that many rows. By ``weight``
    the mix is the largest in which every source has its share and none has a row more often than ``repeat`` says.
    ``trained`` [rows], given where shares are of them: the trained tokens of each row. A source then comes to its share
    but for less than the tokens of one row. ``drawn``: which sources are themselves what a sample's draw has left, a
    few rows more than it needs. ``key`` is the recipe's, for errors."""
    taken = []
    for number, recipe in enumerate(sources):
        rows = np.flatnonzero(source == number)
        if recipe.count is not None:
            if recipe.count > len(rows):
                text = f"{key}: {recipe.path} has {len(rows):,} usable rows, count asks for {recipe.count:,}"
                raise InputError(
                    f"{text}; a count takes no row twice, so lower it, or set repeat to take all more often"
                )
            # by numbers other than those that drew them, or a row's place among them would decide
            rows = _sample(rows, recipe.count, seed, number, *((0,) if drawn and drawn[number] else ()))
        taken.append(np.repeat(rows, recipe.repeat))
    weights = np.array([recipe.weight or 0.0 for recipe in sources])
    if weights.any():
        shares = weights / weights.sum()
        amounts = [len(rows) if trained is None else trained[rows].sum() for rows in taken]
        total = min(amount / share for amount, share in zip(amounts, shares, strict=True))
        # the least bit up: 0.3 * 10 / 0.3 may come to just below 10
        sizes = [int(total * share + 1e-6) for share in shares]
        mix = [
            _sample(rows, size, seed, number) if trained is None else _filled(rows, size, trained, seed, number)
            for number, (rows, size) in enumerate(zip(taken, sizes, strict=True))
        ]
        if without := [source.path for source, rows in zip(sources, mix, strict=True) if not len(rows)]:
            text = f"the mix by weight leaves no row of {without[0]}"
            raise InputError(f"{key}: {text}; give it more weight, or the others more rows")
        taken = mix
    return np.concatenate(taken)


def _sample(rows: np.ndarray, size: int, *seeds: int) -> np.ndarray:
    if size == len(rows):
        return rows
    return np.sort(np.random.default_rng(seeds).choice(rows, size, replace=False))


def _filled(rows: np.ndarray, size: int, trained: np.ndarray, seed: int, number: int) -> np.ndarray:
    """The first rows of a seeded order whose trained tokens together are at most ``size``."""
    order = np.random.default_rng((seed, number)).permutation(rows)
    return np.sort(order[: np.searchsorted(trained[order].cumsum(), size, side="right")])


def split_held_out(prompts: np.ndarray, wanted: HeldOut, seed: int) -> np.ndarray:
    """Which rows [rows] bool are held out: about as many as ``wanted``, all rows of a prompt on the same side.

    ``prompts`` [rows] are hashes of what the rows ask. Exactly ``wanted.count`` rows come out if the sizes of the
    groups of equal prompts allow it, which they do wherever most prompts are there once.
    """
    rows = len(prompts)
    target = wanted.count or max(1, round(wanted.fraction * rows))
    _, group, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    if wanted.count and wanted.count >= rows:
        raise InputError(f"data.eval.count: {wanted.count:,} of {rows:,} rows leaves none to train on")
    if len(sizes) < 2:
        text = f"all {rows:,} rows ask the same first; none can be held out without being trained on"
        raise InputError(f"data.eval: {text}. Give data.eval.sources")
    order = np.random.default_rng((seed, len(sizes))).permutation(len(sizes))
    chosen = np.zeros(len(sizes), dtype=bool)
    left = target
    for number in order.tolist():
        if sizes[number] <= left:
            chosen[number] = True
            left -= int(sizes[number])
            if not left:
                break
    if left == target:
        chosen[np.argmin(sizes)] = True
    if chosen.all():
        chosen[order[0]] = False
    return chosen[group]
