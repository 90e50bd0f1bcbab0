"""Answers against a reference text: the same, containing it, or the same number."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# a sign counts where it does not stand between two numbers: 10-5 ends on 5
_NUMBER = re.compile(rf"(?<![\w.])[-\u2212]?\s?[$\u20ac\u00a3]?\s?(?:{_DIGITS})|(?:{_DIGITS})")
_MARKED = re.compile(r"####\s*(.+)")
_BOXED = "\\boxed{"


def exact(answer: str, reference: str) -> dict[str, float]:
    """The reference, letter for letter, but for white space at the ends."""
    return {"exact": float(answer.strip() == reference.strip())}


def contains(answer: str, reference: str) -> dict[str, float]:
    """The share of the reference's lines that stand in the answer, in upper or lower case."""
    wanted = [line.strip().lower() for line in reference.splitlines() if line.strip()]
    found = answer.lower()
    return {"contains": sum(line in found for line in wanted) / max(1, len(wanted))}


def number(answer: str, reference: str) -> dict[str, float]:
    """The number that the answer comes to, equal to the reference's; 5, 5.0, $5 and 5% are one number."""
    wanted = number_in(reference)
    return {"number": float(wanted is not None and number_in(answer) == wanted)}


def number_in(text: str) -> Decimal | None:
    r"""The last number: in the last \boxed{}, else after the last ####, else of all; None where there is none."""
    if _BOXED in text:
        inside = _braced(text, text.rindex(_BOXED) + len(_BOXED))
        if (found := _last(inside)) is not None:
            return found
    if (marked := _MARKED.findall(text)) and (found := _last(marked[-1])) is not None:
        return found
    return _last(text)


def _braced(text: str, start: int) -> str:
    """Up to the brace that closes what begins at ``start``, or to the end."""
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[start:at]
    return text[start:]


def _last(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    if not found:
        return None
    digits = re.sub(r"[^\d.\u2212-]", "", found[-1]).replace("\u2212", "-")
    try:
        return Decimal(digits)
    except InvalidOperation:
        return None
