"""Numbers of classes with their names, which datasets keeps apart from the rows.

What it writes into Parquet and Arrow files says for a column ``{"names": [...], "_type": "ClassLabel"}``; the column
itself holds numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Self


class ClassNumber(int):
    """A number of a class: ``{{ label }}`` puts the number into a template, ``{{ label.name }}`` the name."""

    name: str

    def __new__(cls, number: int, name: str) -> Self:
        made = super().__new__(cls, number)
        made.name = name
        return made

    def __reduce__(self) -> Any:
        return type(self), (int(self), self.name)


def naming(features: Mapping[str, Any]) -> dict[str, Callable[[Any], Any]]:
    """By column, what gives its numbers their names; ``features`` as datasets writes them, for columns of numbers or of
    lists of numbers. Numbers without a class, such as -1, stay as they are."""
    return {column: named for column, feature in features.items() if (named := _named(feature))}


def features_in(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """The features that datasets has written into a file's schema; none where it has not."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _named(feature: Any) -> Callable[[Any], Any] | None:
    if isinstance(feature, list) and len(feature) == 1:  # as older versions of datasets write a list
        feature = {"_type": "List", "feature": feature[0]}
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") in ("List", "LargeList", "Sequence"):
        inner = _named(feature.get("feature"))
        return inner and (lambda value: [inner(item) for item in value] if isinstance(value, list) else value)
    names = feature.get("names")
    if feature.get("_type") != "ClassLabel" or not isinstance(names, list):
        return None

    def name(value: Any) -> Any:
        known = isinstance(value, int) and 0 <= value < len(names)
        return ClassNumber(value, str(names[value])) if known else value

    return name
