"""Two answers in columns of their own, under names that are not ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hybrid_ft.finetune.data.sources.rows import Row

CHOSEN = ("chosen", "preferred", "good", "better", "winner", "accepted", "positive", "win")
REJECTED = ("rejected", "dispreferred", "bad", "worse", "loser", "negative", "lose")
_ANSWER = frozenset(["response", "responses", "answer", "text", "output", "completion", "reply", "message", "content"])
_MARKED = re.compile(r"(?P<stem>.+?)[ _]?(?P<mark>[abAB12])")
_STEMS = frozenset(["response", "answer", "output", "completion", "reply", "text", "conversation", "model_output"])
_VERDICTS = ("winner", "preference", "preferred", "preferred_response", "choice", "better", "human_preference", "label")
_SAYS = re.compile(r"(?i)(?P<stem>(?:.*[ _])?)(?P<mark>[ab12])")
_TIES = frozenset(["tie", "both", "neither", "tie (bothbad)", "same", "equal", "draw"])

Meaning = dict[str, int | str]
"""What a value of the verdict says: which of the two is better, 1 or 2, or tie."""


def side(columns: Sequence[str], words: tuple[str, ...], rows: Sequence[Row]) -> str | None:
    """The one column of texts or turns that is called by one of the words, alone or beside
    ``response`` and the like."""
    found = []
    for name in columns:
        parts = set(re.split(r"[ _.-]", name.lower()))
        if parts & set(words) and parts - set(words) <= _ANSWER and _held(name, rows):
            found.append(name)
    return found[0] if len(found) == 1 else None


def _held(name: str, rows: Sequence[Row]) -> bool:
    return 2 * sum(isinstance(value := row.values.get(name), str | list) and bool(value) for row in rows) >= len(rows)


def judged_twos(columns: Sequence[str], rows: Sequence[Row]) -> Iterator[tuple[dict[str, str], Meaning]]:
    """Mappings of two answers, and of the column that says which is better, whose values are understood."""
    by_stem: dict[str, dict[str, str]] = {}
    for name in columns:
        match = _MARKED.fullmatch(name)
        if match and match["stem"].lower().rstrip("_ ") in _STEMS and _held(name, rows):
            by_stem.setdefault(match["stem"].lower(), {})[match["mark"].lower()] = name
    for of_stem in by_stem.values():
        for first, second in (("a", "b"), ("1", "2")):
            if of_stem.keys() != {first, second}:
                continue
            for verdict in (name for known in _VERDICTS for name in columns if name.lower() == known):
                values = [row.values[verdict] for row in rows if row.values.get(verdict) not in (None, "")]
                if (meaning := _meaning(values, first + second)) is not None:
                    two = {"output_1": of_stem[first], "output_2": of_stem[second], "preference": verdict}
                    yield two, meaning


def _meaning(values: Sequence[Any], marks: str) -> Meaning | None:
    """None where a value is not understood. Of a number only 1 and 2 are, and only where the
    answers are numbered so."""
    meaning: Meaning = {}
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int):
            return None
        text = str(value)
        if text.lower() in _TIES:
            meaning[text] = "tie"
            continue
        said = _SAYS.fullmatch(text)
        if said is None or said["mark"].lower() not in marks:
            return None
        for number, mark in enumerate(marks, 1):  # the other one too, which the first rows may lack
            meaning[said["stem"] + (mark.upper() if said["mark"].isupper() else mark)] = number
    return meaning or None
