"""Rows chosen by the values of a column, or called bad by their label."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.recipe.nearest import did_you_mean

Values = Mapping[str, Any]

RATINGS = ("label", "tag", "kto_tag", "is_good", "good", "desirable", "thumbs_up", "liked")
"""Columns by which sets of single rated answers (KTO's) say of a row whether it is a good one."""
_MOST_SEEN = 5


class Only:
    """Takes the rows in which each of some columns has one of the values asked for.

    Values are compared as they are spelled in JSON, since a table of text holds no others: ``true`` is also "True".
    """

    def __init__(self, wanted: Mapping[str, Any], name: str) -> None:
        self._wanted = {
            column: {_spelled(value) for value in (values if isinstance(values, list) else [values])}
            for column, values in wanted.items()
        }
        self._name = name
        self._seen: dict[str, dict[str, None]] = {column: {} for column in self._wanted}
        self._columns: dict[str, None] = {}
        self._taken = False

    def takes(self, values: Values) -> bool:
        """Whether a row is to be read."""
        taken = True
        for column, wanted in self._wanted.items():
            found = _spelled(values.get(column))
            if not self._taken and column in values and len(self._seen[column]) < _MOST_SEEN:
                self._seen[column].setdefault(found)
            taken = taken and found in wanted
        if not self._taken:
            self._columns.update(dict.fromkeys(values))
        self._taken |= taken
        return taken

    def check(self, read: int) -> None:
        """Raise InputError where it took none of ``read`` rows."""
        if self._taken or not read:
            return
        where = f"{self._name}: only"
        for column, seen in self._seen.items():
            if not seen:
                found = ", ".join(list(self._columns)[:12])
                raise InputError(f"{where}: no column {column}{did_you_mean(column, self._columns)} (found {found})")
        asked = ", ".join(f"{column}: {' or '.join(sorted(wanted))}" for column, wanted in self._wanted.items())
        found = "; ".join(f"{column} is {', '.join(seen)}" for column, seen in self._seen.items())
        raise InputError(f"{where}: none of {read:,} rows has {asked} (the first: {found}); name values that are there")


def rated_bad(values: Values, read: Collection[str]) -> str | None:
    """The column by which a row is a bad one; None where there is none, or where it is one of ``read``."""
    for name in RATINGS:
        if name in values and name not in read:
            value = values[name]
            if value is False or (isinstance(value, str) and value.strip().lower() == "false"):
                return name
    return None


def _spelled(value: Any) -> str:
    if isinstance(value, str):
        text = value.strip()
        return text.lower() if text.lower() in ("true", "false", "null") else text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else "null" if value is None else shown(value)
