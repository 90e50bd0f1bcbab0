"""The keys of a schema: dotted names, fields and sections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Free:
    """Marks a key that may change between two starts of a run, because it does not touch the weights.

    ``unless``: the dotted name of a key that must then be false.
    """

    unless: str = ""


def keys(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the schema with its field, a section before what is in it: ``data.sources[].path``."""
    for name, field in schema.model_fields.items():
        yield prefix + name, field
        for inner, is_list in sections(field.annotation):
            yield from keys(inner, f"{prefix}{name}{'[]' if is_list else ''}.")


def sections(annotation: Any, in_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """The sections that a key of this type holds, and whether in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, in_list
    for inner in get_args(annotation):
        yield from sections(inner, in_list or get_origin(annotation) is list)


def free_keys(values: BaseModel) -> list[str]:
    """Dotted names of the keys that may change between two starts of a run with these values."""
    found = []
    for name, field in keys(type(values)):
        for mark in field.metadata:
            if isinstance(mark, Free) and not (mark.unless and _value(values, mark.unless)):
                found.append(name)
    return found


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = getattr(values, part, None)  # of a section that is null
    return values
