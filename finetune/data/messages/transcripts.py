"""hh-rlhf transcripts: whole conversations in one string."""

from __future__ import annotations

import re
from typing import Any

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(value: Any) -> bool:
    """Whether a value is such a string: it begins with a human turn, and an assistant turn follows somewhere.

    Files that went through a table have often lost the blank line at the start; that much is allowed.
    """
    return isinstance(value, str) and bool(re.match(r"\n*Human:", value)) and "\n\nAssistant:" in value


def split_transcript(text: str) -> list[dict[str, Any]]:
    """The turns of a transcript as messages, every character kept but the marks and the one space after a colon.

    Nothing escapes the marks inside a turn, so text that holds one is two turns to any reader.
    """
    marks = list(_TURN.finditer("\n\n" + text))
    whole = marks[0].string
    ends = [mark.start() for mark in marks[1:]] + [len(whole)]
    return [
        {"role": _ROLES[mark[1]], "content": whole[mark.end() : end].removeprefix(" ")}
        for mark, end in zip(marks, ends, strict=True)
    ]
