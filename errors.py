"""What a user can cause and mend: one line, a status, no traceback. Secrets that stand in it are masked."""

from __future__ import annotations

import os
import re

MASK = "***"

# Forms that nothing but a credential has: of Hugging Face, OpenAI, GitHub, GitLab, Slack, AWS, a JSON web token, and a
# URL's user and password.
_CREDENTIAL = re.compile(
    r"\bhf_(?=[A-Za-z]*[0-9A-Z])[A-Za-z0-9]{16,}|\bsk-[\w-]{20,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}"
    r"|\bglpat-[\w-]{16,}|\bxox[abeprs]-[\w-]{10,}|\bA[KS]IA[0-9A-Z]{16}\b|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+"
    r"|(?<=://)[^/\s@'\"]+@"
)
# What may be one: masked where it is shown, not refused where it is given.
_LIKELY = re.compile(r"\b(?:hf|wandb)_\w{6,}|(?i:\b\w*(?:token|secret|passw(?:or)?d|api_?key)=)[^\s&'\"]+")
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIALS?)(?:_ID)?$"
)
_SHORTEST = 8  # characters; a shorter value of such a variable would mask ordinary words

ENVIRONMENT, NUMERICS, STORAGE = 3, 4, 5
"""Exit statuses beside 2, bad input: the machine is not what the run needs, a number is not finite, the disk failed."""


class InputError(ValueError):
    """A mistake in a recipe, a data file, a model folder or an argument.

    The message is one line: file and line or key, the value got, the rule, the fix; secrets in it are masked.
    ``status`` is the exit status of the command: 2 bad input, 3 environment, 4 numerics, 5 storage.
    """

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(masked(message))
        self.status = status


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
    values = {value.strip() for name, value in os.environ.items() if _SECRET_NAME.search(name.upper())}
    return sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)
