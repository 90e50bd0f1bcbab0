"""Answers that are JSON objects: equal fields, and invented values."""

from __future__ import annotations

import json
import re
from typing import Any

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


def record(answer: str, reference: str) -> dict[str, float]:
    """What an answer has of a reference record.

    fields    share of the reference's fields that are equal; 0 for what is not a JSON object
    whole     every field equal and none beside them
    valid     the answer is a JSON object, alone or in a fence
    invented  share of the reference's null fields that have a value; not there where it has no null field
    """
    wanted = json_object(reference)
    if wanted is None:
        raise ValueError("the reference must be a JSON object")
    given = json_object(answer)
    right = 0 if given is None else sum(name in given and equal(given[name], value) for name, value in wanted.items())
    scores = {
        "fields": right / max(1, len(wanted)) if wanted else float(given == {}),
        "whole": float(given is not None and right == len(wanted) == len(given)),
        "valid": float(given is not None),
    }
    missing = [name for name, value in wanted.items() if value is None]
    if missing:
        scores["invented"] = sum(_has_value(answer, given, name) for name in missing) / len(missing)
    return scores


def json_object(text: str) -> dict[str, Any] | None:
    """The object that a text is, or that stands in its first fence."""
    fenced = _FENCED.search(text)
    for part in (text, *([fenced[1]] if fenced else [])):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return None


def equal(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 and 1.0 are, 1 and true are not; space at the ends of a text does not count."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, str) and isinstance(other, str):
        return one.strip() == other.strip()
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    return one == other


def _has_value(answer: str, given: dict[str, Any] | None, name: str) -> bool:
    """In an answer that is not JSON the first value written for a field counts."""
    if given is not None:
        return given.get(name) is not None
    return re.search(re.escape(json.dumps(name)) + r"\s*:\s*(?!null\b)\S", answer) is not None
