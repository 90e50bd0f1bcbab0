"""Options in columns of their own, and which of them is right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hybrid_ft.finetune.data.messages.written_columns import KEYS_OF_ANSWER, ref
from hybrid_ft.finetune.data.sources.rows import Row

_NUMBERED = re.compile(r"(?P<stem>[A-Za-z].*?)[ _]?(?P<mark>[0-9]|[A-Ea-e])")
_STEMS = frozenset(
    ["option", "opt", "op", "choice", "answer", "ans", "sol", "solution", "ending", "candidate", "mc_answer"]
)
_KEYS = (*sorted(KEYS_OF_ANSWER), "answer", "cop")


def right_option(columns: Sequence[str], rows: Sequence[Row]) -> tuple[str, set[str]] | None:
    """A template that writes the right one of some options, and the columns that it reads; None where there is none, or
    where the rows do not tell whether they are counted from 0 or from 1."""
    for options in _families(columns):
        for key in (name for known in _KEYS for name in columns if name.lower() == known and name not in options):
            values = [row.values.get(key) for row in rows if row.values.get(key) not in (None, "")]
            first = _first_number(values, options)
            if first is None:
                continue
            of_number = ", ".join(f"'{first + at}': {ref(name)}" for at, name in enumerate(options))
            return f"{{{{ {{{of_number}}}[{ref(key)} | string] }}}}", {key, *options}
    return None


def counted_options(columns: Sequence[str]) -> bool:
    """Whether there are options in columns of their own that an answer may give by their number."""
    return bool(_families(columns))


def _families(columns: Sequence[str]) -> list[list[str]]:
    """Columns that are options, each family in the order of their numbers or letters."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name in columns:
        match = _NUMBERED.fullmatch(name)
        if match and match["stem"].lower().rstrip("_ ") in _STEMS:
            found.setdefault(match["stem"].lower(), []).append((match["mark"].lower(), name))
    families = []
    for of_stem in found.values():
        of_stem.sort()
        marks = "".join(mark for mark, _ in of_stem)
        if len(marks) > 1 and any(all_marks.startswith(marks) for all_marks in ("0123456789", "123456789", "abcde")):
            families.append([name for _, name in of_stem])
    return families


def _first_number(values: Sequence[Any], options: Sequence[str]) -> int | None:
    """The number of the first option, where each value is a number of one and only one way of counting fits."""
    texts = {str(value) for value in values if not isinstance(value, bool)}
    if not texts or len(texts) < len({str(value) for value in values}):
        return None
    fits = [first for first in (0, 1) if texts <= {str(first + at) for at in range(len(options))}]
    return fits[0] if len(fits) == 1 else None
