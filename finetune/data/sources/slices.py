"""Splits and slices of local data, written as the datasets library writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from hybrid_ft.errors import InputError

_WHOLE = 2**62  # more rows than there are
_FROM_THE_START = re.compile(r"[^\[\]%+]+(\[[\d_]*:[\d_]*\])?(\+[^\[\]%+]+(\[[\d_]*:[\d_]*\])?)*")


@dataclass(frozen=True)
class Slice:
    """Rows ``start`` to ``stop`` of a split; a ``stop`` of None is its end."""

    split: str
    start: int = 0
    stop: int | None = None


def slices(text: str, count: Callable[[str], int], splits: Iterable[str]) -> list[Slice]:
    """The slices of ``train``, ``train[:1000]``, ``test[10%:20%]``, ``train[-500:]``, ``train+test``.

    ``count`` gives a split's rows; it is asked only for what is told from the end or in per cent. Raises ValueError.
    """
    from datasets import ReadInstruction

    spec = text.replace(" ", "")
    lengths = _Lengths(spec, count, list(splits))
    try:
        found = ReadInstruction.from_spec(spec).to_absolute(lengths)
    except InputError:  # of a file that is being counted
        raise
    except (ValueError, AssertionError, AttributeError):
        have = ", ".join(lengths)
        missing = [name for name in re.findall(r"(?:^|\+)([^\[+(]+)", spec) if name not in lengths]
        if missing:
            raise ValueError(
                f"there is no split {missing[0]}; must be of {have}, such as {next(iter(lengths))}[:1000]"
            ) from None
        raise ValueError(f"must be a split ({have}), or a part of one such as {next(iter(lengths))}[:1000]") from None
    return [Slice(part.splitname, part.from_, None if part.to == _WHOLE else part.to) for part in found]


class _Lengths(Mapping[str, int]):
    """How many rows each split has, counted when it is asked; without need, more than there are."""

    def __init__(self, spec: str, count: Callable[[str], int], splits: list[str]) -> None:
        self._count, self._splits = count, splits
        self._from_the_start = _FROM_THE_START.fullmatch(spec) is not None
        self._counted: dict[str, int] = {}

    def __getitem__(self, split: str) -> int:
        if split not in self._splits:
            raise KeyError(split)
        if self._from_the_start:
            return _WHOLE
        if split not in self._counted:
            self._counted[split] = self._count(split)
        return self._counted[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)
