"""hh-rlhf transcripts: whole conversations in one string."""

from __future__ import annotations

import re
from typing import Any

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


_WRITTEN_OUT = (
    re.compile(
        r"(?i)(?:^|\n)[ #*]*(?:human|user|instruction|question|prompt)[*]*:.*\n[ #*]*(?:assistant|response|answer|bot|ai)[*]*:",
        re.DOTALL,
    ),
    re.compile(r"(?i)### ?(?:human|user|instruction):.*### ?(?:assistant|response):", re.DOTALL),
    re.compile(
        r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|prompter\|>|<\|user\|>|\[INST\]|<\|start\|>user"
    ),
)
_LOOKED_AT = 4_000  # characters: a whole book would take a while


def looks_like_chat(text: str) -> bool:
    """Whether a text begins like a chat that was written out, with the marks of its turns in it."""
    start = text[:_LOOKED_AT]
    return any(pattern.search(start) for pattern in _WRITTEN_OUT)


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
