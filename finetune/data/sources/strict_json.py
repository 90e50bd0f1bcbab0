"""Strict JSON: no NaN, duplicate keys, lone surrogates or bottomless nesting."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from hybrid_ft.errors import short
from hybrid_ft.finetune.data.sources.rows import BadRow

MAX_DEPTH = 64

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}|\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_SURROGATE = re.compile("[\ud800-\udfff]")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadRow("duplicate key", f"key {short(twice)!r} is given twice in one object; keep one")
    return found


def _constant(text: str) -> float:
    raise BadRow("not JSON", f"{text} is not a JSON number; write null or leave the key out")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise BadRow("not JSON", f"number {short(text)} is too large")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
_LENIENT = json.JSONDecoder()


def parse(text: str, what: str = "") -> Any:
    """The value of one line, or of a string that holds JSON (``what`` then names the field). Raises BadRow."""
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadRow("not JSON", f"{what}not JSON ({syntax(error)})") from None
    except RecursionError:
        raise too_deep(what) from None
    except BadRow as bad:
        raise BadRow(bad.kind, f"{what}{bad}") from None
    except ValueError:  # int() of more than 4,300 digits
        raise BadRow("not JSON", f"{what}not JSON (a number of thousands of digits)") from None
    check(value, text, what)
    return value


def raw_parse(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at ``start`` of a longer text, and where it ends.

    A value that is JSON but breaks a rule of this module comes back as the BadRow itself, so that the reader can go on
    behind it. Raises json.JSONDecodeError (with a position in ``text``) where it is not JSON, RecursionError where it
    is nested without end.
    """
    try:
        value, end = DECODER.raw_decode(text, start)
    except BadRow as bad:
        return bad, _LENIENT.raw_decode(text, start)[1]
    try:
        check(value, text[start:end])
    except BadRow as bad:
        return bad, end
    return value, end


def check(value: Any, text: str, what: str = "") -> None:
    """Refuse nesting deeper than MAX_DEPTH and halves of surrogate pairs, neither of which can
    be encoded or rendered."""
    if text.count("[") + text.count("{") > MAX_DEPTH and depth(value) > MAX_DEPTH:
        raise too_deep(what)
    if "\\u" in text and (escape := _ESCAPED_SURROGATE.search(text)):
        try:
            lone = _SURROGATE.search(json.dumps(value, ensure_ascii=False))
        except RecursionError:
            raise too_deep(what) from None
        if lone:
            where = f"first such escape: {escape[0]} at column {escape.start() + 1}"
            raise BadRow(
                "half a character", f"{what}an escape is half of a surrogate pair, which is not text ({where})"
            )


def too_deep(what: str = "") -> BadRow:
    return BadRow("nested too deep", f"{what}nested more than {MAX_DEPTH} deep")


def depth(value: Any) -> int:
    """How many lists and objects stand inside each other; without recursion."""
    deepest = 0
    open_values: list[tuple[Any, int]] = [(value, 1)]
    while open_values:
        inner, level = open_values.pop()
        if isinstance(inner, dict | list):
            deepest = max(deepest, level)
            items = inner.values() if isinstance(inner, dict) else inner
            open_values.extend((item, level + 1) for item in items)
    return deepest


def syntax(error: json.JSONDecodeError) -> str:
    """json's reason in one phrase, with the column."""
    at = f"at column {error.colno}"
    if error.pos < len(error.doc) and error.doc[error.pos] == "\0":
        return f"NUL byte {at}"
    reason = error.msg.removesuffix(" starting at").removesuffix(" at")
    return f"{reason[:1].lower()}{reason[1:]} {at}"
