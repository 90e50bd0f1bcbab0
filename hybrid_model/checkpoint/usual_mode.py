"""The mode of a file that safetensors has written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def give_usual_mode(files: Iterable[Path]) -> None:
    """The mode that the umask gives a new file: safetensors makes files that nobody but their owner can read."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in files:
        path.chmod(0o666 & ~mask)
