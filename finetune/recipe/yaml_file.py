"""YAML for recipes: PyYAML's parser, YAML 1.2's numbers, every mistake with its line.

PyYAML follows YAML 1.1, where ``1e-5`` is a string, ``no`` is False, ``012`` is ten, ``12:30`` is 750 and
``2024-01-01`` is a date. Here a plain scalar is null, true/false, an integer or a float only in the forms of the
YAML 1.2 core schema, and a number with a leading zero stays a string: everything else is a string.

Refused: tags, anchors and aliases (they can hide or multiply content), a key given twice, two documents, anything
but a mapping at the top. The parser's events are read with an explicit stack, so no depth of nesting can exhaust
Python's own.

Why not a library: ruamel.yaml keeps tags and anchors and stops at the first key that is given twice; strictyaml refuses
flow mappings such as ``{rank: 16}`` and stops at the first mistake.
"""

from __future__ import annotations

import bisect
import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from hybrid_ft.errors import InputError, shown

Loc = tuple[str | int, ...]
"""Where a value stands: mapping keys and list indexes from the top, ``("data", "sources", 0, "path")``."""

MAX_BYTES = 65_536
MAX_DEPTH = 16
MAX_DIGITS = 300  # of one number: a float overflows beyond, and Python refuses to convert above 4,300

_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # no file name, prompt or UTF-8 file can hold these
_LINE_END = re.compile(r"\r\n?|\n")
_NOT_FINITE = re.compile(r"([-+]?)\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def plain_scalar(text: str) -> str | int | float | bool | None:
    """The value of an unquoted scalar."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if len(text) > MAX_DIGITS:
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OCTAL_OR_HEX.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "", 1)) if match[1] is not None else float("nan")
    return text


class YamlFile(NamedTuple):
    """What a file says, the line (from 1) of every key and list item, and the mistakes that did
    not stop the reading."""

    value: dict[str, Any]
    lines: dict[Loc, int]
    mistakes: list[tuple[int, str]]


def read_yaml(path: Path, what: str = "recipe", keys: str = "model:, data:, train:") -> YamlFile:
    """A file's mapping. Raises InputError, one line per mistake, for what cannot be read to its end.

    ``what`` the file is and some ``keys`` that it has, for the messages.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES // 1024} kB; a {what} is a short text file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        read = error.object  # without a byte order mark
        line = _Lines(read[: error.start].decode()).last
        raise InputError(f"{path}:{line}: byte {read[error.start]:#04x} is not UTF-8; save the file as UTF-8") from None
    builder = _build(text, what)
    if builder.broken:
        raise InputError("\n".join(f"{path}:{line}: {mistake}" for line, mistake in builder.mistakes))
    if not isinstance(builder.top, dict):
        got = "is empty" if builder.top is None else f"holds {shown(builder.top)}"
        raise InputError(f"{path}: {got}; a {what} must be a mapping of keys such as {keys}")
    return YamlFile(builder.top, builder.lines, builder.mistakes)


def read_value(text: str) -> Any:
    """The value of ``key=value`` on a command line.

    A list, a mapping or a quoted string is YAML; anything else is one plain scalar as a whole, so that colons,
    hashes and stars need no quoting. Raises ValueError with the reason.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        if match := _NO_TEXT.search(text):
            raise ValueError(f"character {ord(match[0]):#04x} is not allowed")
        return plain_scalar(text)
    builder = _build(text)
    if builder.mistakes:
        raise ValueError("; ".join(mistake for _, mistake in builder.mistakes))
    return builder.top


class _Open:
    """A mapping or list whose end has not been read yet."""

    def __init__(self, loc: Loc, items: dict[str, Any] | list[Any]) -> None:
        self.loc = loc
        self.items = items
        self.key: str | None = None  # of a mapping: the key whose value comes next


class _Lines:
    """Lines and columns, from 1, as an editor counts them. PyYAML's marks also count U+2028, U+2029 and U+0085."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(end.end() for end in _LINE_END.finditer(text))]

    @property
    def last(self) -> int:
        return len(self._starts)

    def line(self, index: int) -> int:
        return bisect.bisect_right(self._starts, index)

    def column(self, index: int) -> int:
        return index - self._starts[self.line(index) - 1] + 1


class _Stop(Exception):
    """Nothing after this point can be read sensibly; the mistake has been noted."""


class _Builder:
    """Turns parser events into a value, noting lines and mistakes."""

    def __init__(self, what: str, places: _Lines) -> None:
        self.top: Any = None
        self.lines: dict[Loc, int] = {}
        self.mistakes: list[tuple[int, str]] = []
        self.broken = False  # the text was not read to its end
        self._stack: list[_Open] = []
        self._documents = 0
        self._what = what
        self._places = places

    def take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents == 2:
                self._stop(event, f"a second document starts here; a {self._what} is one document")
        elif isinstance(event, yaml.CollectionEndEvent):
            self._stack.pop()
        elif isinstance(event, yaml.NodeEvent):
            parent = self._stack[-1] if self._stack else None
            if parent and isinstance(parent.items, dict) and parent.key is None:
                self._take_key(event, parent, parent.items)
            else:
                self._take_value(event, parent)

    def _take_key(self, event: yaml.NodeEvent, parent: _Open, items: dict[str, Any]) -> None:
        """A key is a scalar, new in its mapping; its text counts, whatever it would be as a value."""
        if not isinstance(event, yaml.ScalarEvent):
            self._stop(event, "a key must be a plain string, not a list, a mapping or an alias")
        self._refuse_tag_and_anchor(event)
        self._refuse_no_text(event)
        loc = (*parent.loc, event.value)
        if event.value in items:
            self._note(event, f"key {dotted(loc)} is given twice (first on line {self.lines[loc]}); keep one")
        self.lines.setdefault(loc, self._line(event))
        parent.key = event.value

    def _take_value(self, event: yaml.NodeEvent, parent: _Open | None) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._note(event, f"alias *{event.anchor} is not allowed; write the value out (or quote the string)")
        else:
            self._refuse_tag_and_anchor(event)
        value: Any = None
        if isinstance(event, yaml.CollectionStartEvent):
            value = {} if isinstance(event, yaml.MappingStartEvent) else []
        elif isinstance(event, yaml.ScalarEvent):
            self._refuse_no_text(event)
            value = plain_scalar(event.value) if event.implicit[0] else event.value
        loc = self._attach(event, parent, value)
        if isinstance(event, yaml.CollectionStartEvent):
            if len(self._stack) == MAX_DEPTH:
                self._stop(event, f"nested more than {MAX_DEPTH} deep")
            self._stack.append(_Open(loc, value))

    def _attach(self, event: yaml.NodeEvent, parent: _Open | None, value: Any) -> Loc:
        if parent is None:
            self.top = value
            return ()
        if isinstance(parent.items, list):
            loc: Loc = (*parent.loc, len(parent.items))
            self.lines[loc] = self._line(event)
            parent.items.append(value)
            return loc
        assert parent.key is not None
        loc = (*parent.loc, parent.key)
        parent.items[parent.key] = value
        parent.key = None
        return loc

    def _refuse_tag_and_anchor(self, event: yaml.NodeEvent) -> None:
        tag = getattr(event, "tag", None)
        if tag is not None:
            rule = f"a {self._what} holds plain values (or quote the string)"
            self._note(event, f"tag {_short_tag(tag)} is not allowed; {rule}")
        if event.anchor is not None:
            self._note(event, f"anchor &{event.anchor} is not allowed; write the value out (or quote the string)")

    def _refuse_no_text(self, event: yaml.ScalarEvent) -> None:
        if match := _NO_TEXT.search(event.value):
            self._note(event, f"character {ord(match[0]):#04x} is not allowed in a string")

    def _note(self, event: yaml.Event, text: str) -> None:
        self.mistakes.append((self._line(event), text))

    def _stop(self, event: yaml.Event, text: str) -> NoReturn:
        self._note(event, text)
        raise _Stop

    def _line(self, event: yaml.Event) -> int:
        assert event.start_mark is not None
        return self._places.line(event.start_mark.index)


def _build(text: str, what: str = "recipe") -> _Builder:
    places = _Lines(text)
    builder = _Builder(what, places)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            builder.take(event)
    except _Stop:
        builder.broken = True
    except yaml.MarkedYAMLError as error:
        builder.broken = True
        mark = error.problem_mark or error.context_mark
        builder.mistakes.append((places.line(mark.index) if mark else 1, _syntax(error, places)))
    except yaml.reader.ReaderError as error:
        builder.broken = True
        builder.mistakes.append(
            (places.line(error.position), f"control character {error.character:#04x} is not allowed in YAML")
        )
    return builder


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!") if tag.startswith("tag:yaml.org,2002:") else tag


def _syntax(error: yaml.MarkedYAMLError, places: _Lines) -> str:
    """PyYAML's several lines as one."""
    problem = error.problem or error.context or "not YAML"
    if "'\\t'" in problem:
        return "a tab cannot indent YAML; use spaces"
    column = f" at column {places.column(error.problem_mark.index)}" if error.problem_mark else ""
    context = f" ({error.context})" if error.context and error.problem else ""
    return " ".join(f"not YAML: {problem}{context}{column}".split())


def dotted(loc: Loc) -> str:
    """``data.sources.0.path``; a part that is not a plain word is quoted, a long one cut."""
    return ".".join(str(part) if re.fullmatch(r"[\w-]{1,60}", str(part)) else ascii(str(part)[:60]) for part in loc)


class _Dumper(yaml.SafeDumper):
    """Writes what ``read_yaml`` reads back as the same values."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML would leave 1e-5 or 0o17 unquoted: strings to YAML 1.1, numbers here.
    style = None if isinstance(plain_scalar(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_str)


def dump_yaml(value: Any) -> str:
    """YAML text in the order given, one key per line, no anchors."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def flow(value: Any) -> str:
    """YAML on one line: ``{path: tiny}``, ``[0.9, 0.95]``, ``null``."""
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=2**20)
    return text.removesuffix("\n").removesuffix("\n...")
