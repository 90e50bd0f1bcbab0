"""Answers so far, beside the file that will hold them: none is made twice."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hybrid_ft.errors import STORAGE, InputError, shown

WINDOW = 256
"""Prompts that are answered and kept together."""


def windows(start: int, total: int) -> Iterator[slice]:
    """The prompts from ``start`` on, as many at a time as are answered together."""
    return (slice(first, min(first + WINDOW, total)) for first in range(start, total, WINDOW))


class PartialAnswers:
    """The answers to the first of ``total`` prompts, in ``OUT.part``, which begins with the digest of all that decides
    them. Raises InputError for a file of others."""

    def __init__(self, out: Path, digest: str, total: int) -> None:
        self.path, self.answers, self.total = out.with_name(f"{out.name}.part"), list[str](), total
        try:
            raw = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})", STORAGE) from None
        lines = raw.splitlines(keepends=True)
        if lines and lines[0].endswith(b"\n"):
            if self._value(lines[0]) != digest:
                raise InputError(
                    f"{self.path}: holds answers to other rows, of another model or with other settings; remove it, or "
                    "give another --out"
                )
            whole = [line for line in lines[1:] if line.endswith(b"\n")]
            # windows are whole: what is sampled depends on where one begins
            found = [self._value(line) for line in whole]
            self.answers = found if len(found) == total else found[: len(found) // WINDOW * WINDOW]
        head = json.dumps(digest) + "\n"
        self._write("wb", [head, *(json.dumps(text, ensure_ascii=False) + "\n" for text in self.answers)])

    def missing(self) -> Iterator[slice]:
        """The prompts that have no answer yet."""
        return windows(len(self.answers), self.total)

    def add(self, answers: list[str]) -> None:
        """Append answers, on the disk when this returns."""
        self._write("ab", (json.dumps(text, ensure_ascii=False) + "\n" for text in answers))
        self.answers += answers

    @contextmanager
    def told(self) -> Iterator[None]:
        """Where an error or Ctrl-C ends the block, say what is kept; a file of none goes."""
        try:
            yield
        except BaseException as error:
            if not self.answers:
                self.path.unlink(missing_ok=True)
            elif not isinstance(error, InputError):
                print(self._kept(), file=sys.stderr)
            raise

    def _kept(self) -> str:
        count = len(self.answers)
        return f"{count:,} answer{'s are' if count > 1 else ' is'} in {self.path}; the same command goes on from there"

    def _write(self, mode: str, lines: Iterable[str]) -> None:
        try:
            with self.path.open(mode) as file:
                file.write("".join(lines).encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            kept = f"; {self._kept()}" if self.answers else ""
            raise InputError(f"{self.path}: cannot be written ({error.strerror}){kept}", STORAGE) from None

    def _value(self, line: bytes) -> str:
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, str):
            raise InputError(f"{self.path}: is not a file of answers so far, {shown(line[:40])}; remove it")
        return value
