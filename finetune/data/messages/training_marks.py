"""Marks of rows, turns and parts: are they trained?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybrid_ft.errors import shown
from hybrid_ft.finetune.data.sources.rows import BadRow

SWITCHES = ("train", "training", "trainable")
WEIGHTS = ("weight", "loss", "loss_weight", "loss_scale")
UNCLEAR = (
    *("mask", "masked", "masks", "loss_mask", "loss_masks", "train_mask", "assistant_masks", "completion_mask"),
    *("ignore_loss", "train_detail"),
)
MARKS = (*SWITCHES, *WEIGHTS, *UNCLEAR)
KIND = "training flag"

Weights = list[tuple[int | None, float]]
"""Of one turn in the loss: a weight for the characters of its content up to each end; up to 0 is what comes before the
content, None is to the turn's end."""

_RULE = "must be true or 1 (the {what} is trained), false or 0 (it is not)"
_RULE_OF_WEIGHTS = "must be a number from 0 (the {what} is not trained) to 1, or true or false"
_AS_TEXT = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": None, "null": None}


def mark_of(values: Mapping[str, Any], at: str, what: str) -> float | None:
    """The weight that a row's, a turn's or a part's own marks give it in the loss, from 0 to 1; None where it has none.

    ``at`` is its place, "" for a row, whose marks may be text as a table holds them. Raises BadRow for a mark that is
    neither, whose meaning differs from tool to tool, and for two that differ.
    """
    before = f"{at}." if at else ""
    for key in values if at else ():
        if key not in MARKS and key.lower() in MARKS and values[key] is not None:
            raise BadRow(
                KIND, f"{before}{key}: got {shown(values[key])}; marks are read in small letters: {key.lower()}"
            )
    marks: dict[str, float] = {}
    for key in MARKS:
        value = values.get(key)
        if not at and isinstance(value, str):
            value = _from_text(value)
        if value is None:
            continue
        if key in UNCLEAR:
            raise BadRow(KIND, f"{before}{key}: got {shown(value)}; {_unclear(key, what)}{_way_out(at)}")
        number = isinstance(value, bool | int | float)
        if not number or not (0 <= value <= 1 if key in WEIGHTS else value in (0, 1)):
            rule = (_RULE_OF_WEIGHTS if key in WEIGHTS else _RULE).format(what=what)
            raise BadRow(KIND, f"{before}{key}: got {shown(value)}; {rule}{_way_out(at)}")
        marks[key] = float(value)
    if len(set(marks.values())) > 1:
        raise BadRow(KIND, f"{at or 'the row'}: {' and '.join(marks)} contradict each other; keep one")
    return next(iter(marks.values()), None)


def scaled(weights: Weights, factor: float) -> Weights:
    return [(end, weight * factor) for end, weight in weights]


def _from_text(text: str) -> Any:
    """A mark that a table holds as text."""
    try:
        return _AS_TEXT[text.strip().lower()]
    except KeyError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def first_mark(values: Mapping[str, Any]) -> str:
    """The name of the first mark that is there, for errors."""
    return next(key for key in MARKS if values.get(key) is not None)


def turn_mark(turn: Mapping[str, Any], role: str, at: str) -> float | None:
    """As ``mark_of``; a mark that asks to train another's turn than the assistant's is refused as well."""
    mark = mark_of(turn, at, "turn")
    if mark and role != "assistant":
        key = first_mark(turn)
        text = f"{at}.{key}: got {shown(turn[key])} (role {role}); only assistant turns are trained"
        raise BadRow(KIND, text)
    return mark


def _unclear(key: str, what: str) -> str:
    if key == "train_detail":
        return "write the answer as parts {type: text, text: ..., train: true or false}"
    return f"tools differ in whether it means trained or left out; say train: true or false of the {what}"


def _way_out(at: str) -> str:
    return "" if at else ", or set columns to read others alone"
