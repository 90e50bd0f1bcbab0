"""Sources mixed, shuffled and packed, a window of rows at a time.

The datasets library interleaves and shuffles streams too, but a resumed one has lost its shuffle buffer. Here a window
is a block of the mix, shuffled and packed whole, and all that it depends on is where its sources stood when it began: a
few numbers, from which it is made again row for row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.packing import pack
from hybrid_ft.finetune.data.prompt_order import order_of
from hybrid_ft.finetune.data.report.account import refusal
from hybrid_ft.finetune.data.streaming.chunk_forms import reader_of
from hybrid_ft.finetune.data.streaming.source_stream import HeldOutRule, SourceStream, State
from hybrid_ft.finetune.data.streaming.stream_rows import AnyRow

if TYPE_CHECKING:
    from hybrid_ft.finetune.data.way import Way
    from hybrid_ft.finetune.recipe.schema import Recipe

_JUDGED = 1000  # rows read before a share of them says anything


@dataclass
class Window:
    """Rows, the source of each, and the packs they fall into, in the order of training; of pairs, the steps.

    ``start``: the stream's state before it; ``end``: what was counted up to its end.
    """

    rows: list[AnyRow]
    sources: list[int]
    packs: list[list[int]]
    start: State
    end: State


class RowStream:
    """The windows of a recipe's sources, pass after pass without end.

    Without weights a source's chance to give the next row is its size on disk (``repeat`` times it; alone ``repeat``
    where one is on the hub), so that all end together, and a pass ends when all have. With weights these are the
    chances, and a source that ends begins again.

    Pairs are dealt to steps; where a list makes several of them, those of one prompt follow one another.
    """

    def __init__(self, recipe: Recipe, way: Way[Any, Any], texts: bool, buffer: int | None = None) -> None:
        data, train = recipe.data, recipe.train
        self._recipe = recipe
        # the rows of a padded batch, or of a step of pairs; packs take what their budget does
        self._rows = recipe.pairs_or_rows or (None if data.packing else train.batch_size)
        size = data.shuffle_buffer if buffer is None else buffer
        # steps, and padded batches, are all of the same size
        self._size = size if self._rows is None else max(size - size % self._rows, self._rows)
        self._by_prompt = any(source.pairs == "all" for source in data.sources)
        rule, reader = HeldOutRule(data.eval.fraction, data.seed), reader_of(recipe, texts)
        self.sources = [SourceStream(source, way, reader, rule) for source in data.sources]
        self._weighed = data.sources[0].weight is not None
        self._shares = _shares([source.weight for source in data.sources], self.sources, recipe)
        self.passes, self._window = 0, 0
        self._totals = dict.fromkeys(("rows", "tokens", "trained", "packs", "room"), 0)

    @property
    def endless(self) -> bool:
        """Whether no pass ever ends."""
        return self._weighed

    def windows(self, judged: bool = True) -> Iterator[Window]:
        """From where the stream stands. Raises InputError where the data must not be trained on; with ``judged=False``
        not for the share of the rows that is dropped."""
        if judged:
            for source in self.sources:
                source.after_chunk = self._check
        while True:
            start = self._state()
            rows, sources = self._draw()
            ended = len(rows) < self._size
            if judged and ended:
                self._check(ended)
            if rows:
                yield self._packed(rows, sources, start)
            elif not self._window:
                raise InputError("data.sources: no row is left to train on; all are held out, or the files are empty")
            if ended:
                self.passes, self._window = self.passes + 1, 0
                for source in self.sources:
                    source.rewind()
            else:
                self._window += 1

    def load(self, state: State) -> None:
        """Go on with the window that began at ``state``."""
        self.passes, self._window, self._totals = state["passes"], state["window"], dict(state["totals"])
        for source, of_source in zip(self.sources, state["sources"], strict=True):
            source.load(of_source)

    def _state(self) -> State:
        """JSON."""
        sources = [source.state() for source in self.sources]
        return {"passes": self.passes, "window": self._window, "totals": dict(self._totals), "sources": sources}

    def _draw(self) -> tuple[list[AnyRow], list[int]]:
        """The next rows of the mix, and the source of each; fewer than a window at the end of a pass."""
        random = np.random.default_rng(self._seeds("mix"))
        chances, rows, sources = self._shares.copy(), list[AnyRow](), list[int]()
        while len(rows) < self._size and chances.any():
            number = int(random.choice(len(chances), p=chances / chances.sum())) if len(chances) > 1 else 0
            row = self.sources[number].next()
            if row is None and self._weighed:
                self.sources[number].rewind()
                row = self.sources[number].next()
            if row is None:
                chances[number] = 0.0
            else:
                rows.append(row)
                sources.append(number)
        return rows, sources

    def _packed(self, rows: list[AnyRow], sources: list[int], start: State) -> Window:
        lengths, seed = [row.tokens for row in rows], self._seeds("order")
        if self._rows is None:
            budget = self._recipe.train.batch_tokens
            packs = pack(lengths, budget, int(np.random.SeedSequence(seed).generate_state(1)[0]))
            room = len(packs) * budget
        else:
            order = self._order(rows, seed)
            packs = [order[at : at + self._rows] for at in range(0, len(order), self._rows)]
            room = sum(len(one) * max(lengths[row] for row in one) for one in packs)
        trained = sum(row.trained for row in rows)
        new = {"rows": len(rows), "tokens": sum(lengths), "trained": trained, "packs": len(packs), "room": room}
        self._totals = {name: self._totals[name] + value for name, value in new.items()}
        return Window(rows, sources, packs, start, self.account_state())

    def _order(self, rows: list[AnyRow], seed: Sequence[int]) -> list[int]:
        if self._by_prompt:
            return order_of([row.prompt for row in rows], seed)
        return np.random.default_rng(seed).permutation(len(rows)).tolist()

    def account_state(self) -> State:
        """What was counted so far, JSON."""
        held = sum(source.held for source in self.sources)
        counts = [source.state_of_counts() for source in self.sources]
        turns = [source.turns for source in self.sources]
        return {"counts": counts, "held": held, "turns": turns, "passes": self.passes} | self._totals

    def _seeds(self, what: str) -> Sequence[int]:
        return (self._recipe.data.seed, self.passes, self._window, ("mix", "order").index(what))

    def _check(self, ended: bool = False) -> None:
        """Raise InputError where more rows are dropped than the recipe allows, of those that were read so far."""
        if self.passes:
            return
        counts = [source.counts for source in self.sources]
        read = sum(count.read for count in counts)
        if (ended or read >= _JUDGED) and (stop := refusal(counts, self._recipe.data.max_dropped, "data.sources")):
            raise InputError(stop if ended else f"{stop} (of the {read:,} rows of the stream that were read so far)")


def _shares(weights: Sequence[float | None], sources: Sequence[SourceStream], recipe: Recipe) -> np.ndarray:
    sizes = [source.size for source in sources]
    if weights[0] is not None:
        chances = [float(weight or 0.0) for weight in weights]
    elif all(size for size in sizes):
        chances = [float(size or 0) for size in sizes]
    else:
        chances = [float(source.repeat) for source in recipe.data.sources]
    return np.array(chances) / sum(chances)
