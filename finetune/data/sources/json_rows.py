"""Rows of .jsonl and .json files, read so that every complaint has its line.

JSON Lines are read one line at a time and a bad line costs that line only. An array, or an object keyed by id, is
held as text and decoded element by element; what is not JSON there ends the reading, since nothing says where the next
element begins.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from io import BufferedReader
from typing import BinaryIO, cast

from hybrid_ft.errors import InputError, short, shown
from hybrid_ft.finetune.data.sources import strict_json
from hybrid_ft.finetune.data.sources.rows import BadRow, NoRows, Row

# A line beyond this is not a row of text to learn from, and reading on would only fill the memory.
MAX_LINE_BYTES = 64 * 2**20

# JSON's white space; bytes.strip() would also take a form feed, which makes a line bad and not blank
_BLANK = b" \t\r\n"
_SPACE = re.compile(r"[ \t\r\n]*")
_COMMA = re.compile(r",[ \t\r\n]*")


class Lines:
    """The lines of a binary stream, with numbers. Only ``\\n`` ends a line: U+2028 may stand inside a JSON string."""

    def __init__(self, stream: BinaryIO, longest: int = MAX_LINE_BYTES) -> None:
        self._stream = stream
        self._longest = longest
        self.number = 0
        self._back: list[bytes | None] = []

    def next(self) -> bytes | None:
        """The next line without a byte order mark, b"" at the end, None for a line of ``longest`` bytes or more."""
        if self._back:
            self.number += 1
            return self._back.pop()
        raw = self._stream.readline(self._longest)
        if not raw:
            return b""
        self.number += 1
        if len(raw) == self._longest and not raw.endswith(b"\n"):
            if self.number == 1 and raw.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
                return raw + self._stream.readline()  # an array on one line is all of its rows
            while rest := self._stream.readline(2**20):
                if rest.endswith(b"\n"):
                    break
            return None
        return raw.removeprefix(b"\xef\xbb\xbf") if self.number == 1 else raw

    def skip(self, line: int) -> None:
        """Go on behind a line, counting line ends alone: as fast as the stream is read."""
        while self.number < line and self._back:
            self.next()
        while self.number < line and (held := cast(BufferedReader, self._stream).peek()):
            ends = held.count(b"\n")
            if self.number + ends < line:
                self._stream.read(len(held))
                self.number += ends
                continue
            end = 0
            for _ in range(line - self.number):
                end = held.index(b"\n", end) + 1
            self._stream.read(end)
            self.number = line

    def push_back(self, raw: bytes | None) -> None:
        self._back.append(raw)
        self.number -= 1

    def next_filled(self) -> bytes | None:
        """The next line that is not blank."""
        while (raw := self.next()) and not raw.strip(_BLANK):
            pass
        return raw

    def rest(self) -> bytes:
        """All that has not been read yet, what was pushed back included."""
        held = b"".join(raw or b"" for raw in reversed(self._back))
        self._back.clear()
        return held + self._stream.read()


def decode(raw: bytes, line: int) -> str:
    """A line as text. Raises BadRow for what is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode("utf-8")) + 1
        where = f"byte {raw[error.start]:#04x} at column {column}"
        raise BadRow("not UTF-8", f"{where} is not UTF-8; save the file as UTF-8", line) from None


def json_rows(
    stream: BinaryIO, name: str, suffix: str, notes: list[str], read: tuple[int, int] = (0, 0)
) -> Iterator[Row | BadRow]:
    """Rows of a .jsonl or .json file, whichever of the known shapes it has, but those ``read`` before: how many, and
    the line of the last.

    What the file turned out to be is added to ``notes``. Raises InputError for a file that cannot be read to its end.
    """
    lines = Lines(stream, MAX_LINE_BYTES if suffix == ".jsonl" else -1)
    first = lines.next_filled()
    if first == b"":
        return
    start = (first or b"").lstrip(_BLANK)[:1]
    if start == b"[" and not (suffix == ".jsonl" and _is_json_line(first) and not _looks_like_rows(first)):
        if suffix == ".jsonl":
            notes.append("a JSON array in a .jsonl file")
        lines.push_back(first)
        yield from itertools.islice(_Whole(lines, name).array(), read[0], None)
    elif suffix == ".json" and start == b"{" and not _is_first_of_many(first, lines):
        lines.push_back(first)
        yield from itertools.islice(_Whole(lines, name).keyed_or_single(notes), read[0], None)
    else:
        if suffix == ".json":
            notes.append("JSON lines in a .json file")
        _refuse_table(first, lines.number, name)
        lines.push_back(first)
        lines.skip(read[1])
        yield from line_rows(lines)


def line_rows(lines: Lines) -> Iterator[Row | BadRow]:
    """One object per line; blank lines are no rows."""
    while (raw := lines.next()) != b"":
        line = lines.number
        try:
            if raw is None:
                raise BadRow("line too long", f"longer than {MAX_LINE_BYTES // 2**20} MB; one row is one line")
            text = decode(raw, line).strip(" \t\r\n")
            if not text:
                continue
            yield Row(line, _as_object(strict_json.parse(text)))
        except BadRow as bad:
            bad.line = line
            yield bad


def _as_object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise BadRow("not an object", f"a row is an object of columns, not {shown(value)}")
    return value


def _is_json_line(raw: bytes | None) -> bool:
    try:
        strict_json.parse((raw or b"").decode("utf-8").strip())
    except (BadRow, UnicodeDecodeError):
        return False
    return True


def _looks_like_rows(raw: bytes | None) -> bool:
    """Whether a line that is a JSON array by itself holds rows, and is not one row written as a list of cells."""
    value = json.loads(raw or b"null")
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _is_first_of_many(first: bytes | None, lines: Lines) -> bool:
    """Whether a .json file is JSON lines: more follows, and its first line, or the next one, is an object by itself."""
    number = lines.number
    second = lines.next_filled()
    if second == b"":
        return False
    # the blank lines between the two are lost, so their number is put back by hand
    skipped = lines.number - number - 1
    lines.push_back(second)
    for _ in range(skipped):
        lines.push_back(b"\n")
    return first is None or _is_json_line(first) or bool(second and second[:1] == b"{" and _is_json_line(second))


def _refuse_table(first: bytes | None, line: int, name: str) -> None:
    text = (first or b"")[:500].decode("utf-8", "replace").strip()
    if not text.replace("\t", " ").isprintable():
        return
    mark = "tsv" if "\t" in text else "csv" if "," in text else None
    if mark and text[:1] not in ("{", "[") and not _is_json_line(first):
        raise InputError(f"{name}:{line}: looks like {mark.upper()} ({short(text)}); name the file .{mark}")


class _Whole:
    """A file held as one text, decoded element by element."""

    def __init__(self, lines: Lines, name: str) -> None:
        self._name = name
        self._line = lines.number + 1
        raw = lines.rest()
        try:
            self._text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = self._line + raw.count(b"\n", 0, error.start)
            column = len(raw[raw.rfind(b"\n", 0, error.start) + 1 : error.start].decode("utf-8")) + 1
            where = f"byte {raw[error.start]:#04x} at column {column}"
            raise InputError(f"{name}:{line}: {where} is not UTF-8; save the file as UTF-8") from None
        self._at = 0
        self._counted = 0
        self._skip_space()

    def array(self) -> Iterator[Row | BadRow]:
        yield from self._elements("]")
        self._end()

    def keyed_or_single(self, notes: list[str]) -> Iterator[Row | BadRow]:
        """An object of rows keyed by id; or, if its first value is not an object, one row."""
        start, line = self._at, self._here()
        self._open_object()
        key = self._key()
        if key is None or self._peek() != "{":
            self._at = start
            yield self._row(line)
        else:
            notes.append("one object keyed by id")
            self._at = start
            yield from self._elements("}")
        self._end()

    def _elements(self, close: str) -> Iterator[Row | BadRow]:
        """The elements of the array or object that begins here."""
        line = self._here()
        self._at += 1
        self._skip_space()
        if self._peek() == close:
            raise NoRows(f"{self._name}:{line}: 0 rows; the {'list' if close == ']' else 'object'} is empty")
        before = 0
        for number in itertools.count(1):
            key = self._key() if close == "}" else None
            if close == "}" and key is None:
                raise self._broken("a key is missing")
            start, line = self._at, self._here()
            row = self._row(line)
            if line == before or self._next_begins_beside(start):
                row.which = f"row {number}" if key is None else f"key {json.dumps(short(key), ensure_ascii=False)}"
            before = line
            yield row
            if self._skip_comma(close):
                return

    def _row(self, line: int) -> Row | BadRow:
        value = self._value()
        try:
            if isinstance(value, BadRow):
                raise value
            return Row(line, _as_object(value))
        except BadRow as bad:
            bad.line = line
            return bad

    def _next_begins_beside(self, start: int) -> bool:
        """Whether the element behind the comma here begins on the line of the one that began at ``start``."""
        comma = _COMMA.match(self._text, self._at)
        return comma is not None and self._text.find("\n", start, comma.end()) < 0

    def _value(self) -> object:
        try:
            value, self._at = strict_json.raw_parse(self._text, self._at)
        except json.JSONDecodeError as error:
            self._at = error.pos
            column = error.pos - self._text.rfind("\n", 0, error.pos)
            reason = strict_json.syntax(error).rsplit(" at column", 1)[0]
            raise self._broken(f"{reason} at column {column}") from None
        except RecursionError:
            raise InputError(f"{self._name}:{self._here()}: {strict_json.too_deep()}") from None
        except ValueError:  # int() of more than 4,300 digits
            raise self._broken("a number of thousands of digits") from None
        self._skip_space()
        return value

    def _open_object(self) -> None:
        if self._peek() != "{":
            raise self._broken("an object is expected here")
        self._at += 1
        self._skip_space()

    def _key(self) -> str | None:
        """The key that begins here, read up to its value; None at the end of the object."""
        if self._peek() != '"':
            return None
        key = self._value()
        if not isinstance(key, str) or self._peek() != ":":
            raise self._broken("a key and a colon are expected here")
        self._at += 1
        self._skip_space()
        return key

    def _skip_comma(self, close: str) -> bool:
        """Step over ``,`` and say False, or over the closing bracket and say True."""
        mark = self._peek()
        if mark not in (",", close):
            raise self._broken(f"a comma or {close} is expected here")
        self._at += 1
        self._skip_space()
        return mark == close

    def _end(self) -> None:
        if self._at < len(self._text):
            raise self._broken("more follows after the end; write one array, or one object per line")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip_space(self) -> None:
        match = _SPACE.match(self._text, self._at)
        assert match
        self._at = match.end()

    def _here(self) -> int:
        """The line of the current position."""
        if self._at < self._counted:
            self._line -= self._text.count("\n", self._at, self._counted)
        else:
            self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _broken(self, reason: str) -> InputError:
        return InputError(f"{self._name}:{self._here()}: not JSON ({reason})")
