"""Errors that a user can fix: one line, an exit status, secrets masked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

MASK = "***"

CUT_OFF = 0.65
"""Least likeness of a suggestion, by ``difflib``: two letters exchanged in a word of three have 0.67."""
_MOST_LETTERS = 80

# Forms that nothing but a credential has: of Hugging Face, OpenAI, GitHub, GitLab, Slack, AWS, a JSON web token, and a
# URL's user and password; of ssh, where a user is not secret, the two together.
_CREDENTIAL = re.compile(
    r"\bhf_(?=[A-Za-z]*[0-9A-Z])[A-Za-z0-9]{16,}|\bsk-[\w-]{20,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}"
    r"|\bglpat-[\w-]{16,}|\bxox[abeprs]-[\w-]{10,}|\bA[KS]IA[0-9A-Z]{16}\b|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+"
    r"|(?<=ssh://)[^/\s@:'\"]*:[^/\s@'\"]+@|(?<=sftp://)[^/\s@:'\"]*:[^/\s@'\"]+@"
    r"|(?<!ssh://)(?<!sftp://)(?<=://)[^/\s@'\"]+@"
)
# What may be one: masked where it is shown, not refused where it is given.
_LIKELY = re.compile(r"\b(?:hf|wandb)_\w{6,}|(?i:\b\w*(?:token|secret|passw(?:or)?d|api_?key)=)[^\s&'\"]+")
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIALS?)(?:_ID)?$"
)
_SHORTEST = 8  # characters; a shorter value of such a variable would mask ordinary words

BAD_INPUT, ENVIRONMENT, NUMERICS, STORAGE = 2, 3, 4, 5
"""Exit statuses: the user's mistake, a machine that is not what the run needs, a number that is not finite, a disk that
failed."""
RESUMABLE = 75
"""Exit status of a run that was stopped and continues with the same command (EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Exit status after Ctrl-C where nothing can be resumed (128 + SIGINT)."""


class InputError(ValueError):
    """A mistake in a recipe, a data file, a model folder or an argument.

    The message is one line: file and line or key, the value got, the rule, the fix; secrets in it are masked.
    ``status`` is the exit status of the command.
    """

    def __init__(self, message: str, status: int = BAD_INPUT) -> None:
        super().__init__(masked(message))
        self.status = status


def shown(value: Any) -> str:
    """A value of YAML or JSON on one line, cut to a readable length: ``'a'``, ``3``, ``a list of 2``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        names = ", ".join(key if (key := str(name)).isprintable() else ascii(key)[1:-1] for name in list(value)[:4])
        return f"a mapping with {short(names)}" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    try:
        return short(repr(value))
    except ValueError:  # Python refuses to write an integer of more than 4,300 digits
        return "a number of thousands of digits"


def short(text: str, most: int = 60) -> str:
    """A text cut to ``most`` characters, the last three of them dots."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def one_line(error: object, most: int = 300) -> str:
    """What a library says, on one line: its type where it says nothing."""
    return short(" ".join(str(error).split()) or type(error).__name__, most)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is spelt most like ``word``, or None where none is much alike."""
    import difflib

    return next(iter(difflib.get_close_matches(word[:_MOST_LETTERS], list(known), n=1, cutoff=CUT_OFF)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for the nearest known word, or nothing."""
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""


def holds_secret(text: str) -> bool:
    """Whether a text certainly holds a credential: it has the form of one, or is in a variable named like one."""
    return _CREDENTIAL.search(text) is not None or any(secret in text for secret in _in_environment())


def masked(text: str) -> str:
    """The text with ``***`` in the place of every secret: what has the form of one, and what the environment holds."""
    for secret in _in_environment():
        text = text.replace(secret, MASK)
    text = _CREDENTIAL.sub(lambda match: f"{MASK}@" if match[0].endswith("@") else MASK, text)
    return _LIKELY.sub(lambda match: f"{match[0].partition('=')[0]}={MASK}" if "=" in match[0] else MASK, text)


def _in_environment() -> list[str]:
    """Values of variables named like secrets, the longest first: one may hold another."""
    values = {os.environ[name].strip() for name in os.environ if _is_secret(name)}
    return sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)


@cache
def _is_secret(name: str) -> bool:
    """Of a variable; asked for every line that is shown."""
    return _SECRET_NAME.search(name.upper()) is not None
