"""Rows chosen by the values of a column, or called bad by their label."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError, did_you_mean, shown
from hybrid_ft.finetune.data.messages.flow_yaml import flow

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source

Values = Mapping[str, Any]

RATINGS = ("label", "tag", "kto_tag", "is_good", "good", "desirable", "thumbs_up", "liked", "rating", "correct")
"""Columns by which sets of single rated answers (KTO's) say of a row whether it is a good one."""
VERDICTS = (
    "thumbs",
    "thumb",
    "feedback",
    "user_feedback",
    "vote",
    "upvoted",
    "is_correct",
    "is_accepted",
    "accepted",
    "approved",
)
"""The same, of a person or a check: where they are numbers, 0 and below are bad."""
_BAD_WORDS = frozenset(
    [
        "bad",
        "down",
        "thumbs_down",
        "thumbs down",
        "thumbsdown",
        "dislike",
        "disliked",
        "undesirable",
        "rejected",
        "\U0001f44e",
    ]
)
_BAD_MARKS = frozenset(["0", "-1", "no", "negative", "incorrect", "wrong"])
_MOST_SEEN = 5


class Only:
    """Takes the rows in which each of some columns has one of the values asked for, and none has
    one of the ``unwanted``.

    Values are compared as they are spelled in JSON, since a table of text holds no others: ``true`` is also "True".
    """

    def __init__(self, wanted: Mapping[str, Any] | None, unwanted: Mapping[str, Any] | None, name: str) -> None:
        self._wanted, self._unwanted = _by_column(wanted), _by_column(unwanted)
        self._name = name
        self._seen: dict[str, dict[str, None]] = {column: {} for column in (*self._wanted, *self._unwanted)}
        self._columns: dict[str, None] = {}
        self._taken = False

    def takes(self, values: Values) -> bool:
        """Whether a row is to be read."""
        taken = True
        for choice, is_wanted in ((self._wanted, True), (self._unwanted, False)):
            for column, named in choice.items():
                found = _spelled(values.get(column))
                if column in values and len(self._seen[column]) < _MOST_SEEN:
                    self._seen[column].setdefault(found)
                taken = taken and (found in named) == is_wanted
        if not self._taken:
            self._columns.update(dict.fromkeys(values))
        self._taken |= taken
        return taken

    def check(self, read: int) -> None:
        """Raise InputError where it left out all of ``read`` rows, or asks for a column that none has."""
        self.check_unwanted()
        for column in self._wanted if read and not self._taken else ():
            self._check_column("only", column)
        if self._taken or not read:
            return
        where = f"{self._name}: {'only' if self._wanted else 'without'}"
        if not self._wanted:
            named = "; ".join(f"{column}: {', '.join(sorted(values))}" for column, values in self._unwanted.items())
            raise InputError(f"{where}: all {read:,} rows have {named}; name values of the rows to leave out")
        asked = ", ".join(f"{column}: {' or '.join(sorted(wanted))}" for column, wanted in self._wanted.items())
        found = "; ".join(f"{column} is {', '.join(seen)}" for column, seen in self._seen.items())
        raise InputError(f"{where}: none of {read:,} rows has {asked} (the first: {found}); name values that are there")

    def unseen(self) -> bool:
        """Whether no row had one of the columns of ``without``."""
        return any(not self._seen[column] for column in self._unwanted)

    def check_unwanted(self, where: str = "") -> None:
        """Raise InputError for a column of ``without`` that no row had. ``where`` says of which rows, of all if ""."""
        for column in self._unwanted:
            self._check_column("without", column, where)

    def _check_column(self, key: str, column: str, where: str = "") -> None:
        if not self._seen[column] and self._columns:
            found = ", ".join(list(self._columns)[:12])
            near = did_you_mean(column, self._columns)
            raise InputError(f"{self._name}: {key}: no column {column}{near} (found {found}){where}")


def chosen_by(source: Source, name: str) -> Only | None:
    """What chooses among the rows of a source; None where all are read."""
    return Only(source.only, source.without, name) if source.only or source.without else None


def _by_column(values: Mapping[str, Any] | None) -> dict[str, set[str]]:
    """The values asked for, as they are compared."""
    return {
        column: {_spelled(one) for one in (named if isinstance(named, list) else [named])}
        for column, named in (values or {}).items()
    }


def rated_bad(values: Values, read: Collection[str]) -> str | None:
    """What says that a row is a bad one: the name of a column that is false, or else the column with its value, as
    ``without`` takes it: ``{vote: -1}``.

    None where nothing says so, and for a column that is among the ``read`` ones.
    """
    for name in (*RATINGS, *VERDICTS):
        if name in values and name not in read:
            value = values[name]
            said = _spelled(value)
            text = said.lower()
            if text == "false":
                return name
            if text in _BAD_WORDS or (name in VERDICTS and text in _BAD_MARKS):
                return flow({name: said})
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
