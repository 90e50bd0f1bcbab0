"""Texts in tokens, by parts that come again in row after row.

Byte-level BPE cuts a text into words by a pattern before it looks at letters. There are places that no word of the
patterns known here reaches over, and where what stands on one side does not change the words of the other. Between two
such places a text is a part: its tokens are its own, whatever is around it, so they are asked of the tokenizer once and
remembered. The places (P: ``!`` to ``~``):

    P, then a space    no word has a space behind anything but white space
    a-z, then not      a word ends with its last letter, and what no letter begins does not look back; numbers likewise
    line end, then P   a word ends with its last line end; not so by GPT-2's pattern, in which of two line ends before P
                       the second is a word of its own, and at a text's end is not
    control tokens     are taken out of a text before it is cut; what stands between two is called a piece
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

_LETTERS = (r"\p{L}+", r"[\p{L}\p{M}]+")
_NO_LETTERS = {r"\p{L}+": r"[^\s\p{L}\p{N}]+", r"[\p{L}\p{M}]+": r"[^\s\p{L}\p{M}\p{N}]+"}
_LINES_APART = frozenset(
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{letters}|{digits}"
    rf"| ?{_NO_LETTERS[letters]}[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for letters in _LETTERS
    for digits in (r"\p{N}{1,3}", r"\p{N}")
)
"""The patterns of GPT-4, Llama 3 and Olmo, of Qwen 2 and 3, and of Qwen 3.5."""

_LONGEST, _MOST = 48, 2**17  # characters of a part that is remembered, and how many are
_BYTES = array("i").itemsize
_WHOLE = 16  # characters of a text between two control tokens that is remembered as one: a role, mostly
_BORDER = r"[\t\n\r -/:-@\[-`{{-~]"  # neither letter nor digit
# what most parts are comes first: a word or a number, with what stands before it
_FIRST = (
    r" ?[!-/:-@\[-`{{-~]*+(?:[A-Za-z]++(?=[0-9]|" + _BORDER + r")|[0-9]++(?=[A-Za-z]|" + _BORDER + r"))| [!-~]++(?= )|"
)
_LINE_PART = _FIRST + r"{n}*[\r\n](?=[!-~])|{n}*[!-~]+(?:{m}{n}*(?<![\r\n])[!-~]+)*(?:{m}{n}*)?|{n}+"
_PART = _FIRST + r"{n}*[!-~]+(?:{m}{n}*[!-~]+)*(?:{m}{n}*)?|{n}+"

Places = list[tuple[int, int]]


class Tokenized(Protocol):
    """A text in tokens."""

    @property
    def tokens(self) -> np.ndarray:
        """Its tokens' ids, int32 [tokens]."""
        ...

    @property
    def ids(self) -> list[int]:
        """The same as a list."""
        ...

    def char_to_token(self, char_pos: int, /) -> int | None:
        """The first token that holds a character; None where none does."""
        ...

    def token_to_chars(self, token_index: int, /) -> tuple[int, int] | None:
        """Where a token's characters begin and end."""
        ...


class InOne:
    """A text in tokens, as the tokenizers library gives it."""

    def __init__(self, encoding: Any) -> None:
        self.ids: list[int] = encoding.ids
        self.tokens = np.array(self.ids, np.int32)
        self.char_to_token = encoding.char_to_token
        self.token_to_chars = encoding.token_to_chars


class InParts:
    """A text in tokens, put together. ``pieces``: texts and control tokens in turn; ``found``: each
    one's ids, as bytes."""

    __slots__ = ("_found", "_inner", "_laid", "_parts_of", "_pieces", "tokens")

    def __init__(
        self, pieces: list[str], found: list[bytes], parts_of: Callable[[str], list[tuple[str, Places]]]
    ) -> None:
        self.tokens: np.ndarray = np.frombuffer(b"".join(found), np.int32)
        self._pieces, self._found, self._parts_of = pieces, found, parts_of
        self._laid: tuple[list[int], list[int]] | None = None
        self._inner: dict[int, tuple[list[Places], list[int], list[int]]] = {}

    @property
    def ids(self) -> list[int]:
        """As ``Tokenized``."""
        found: list[int] = self.tokens.tolist()
        return found

    def char_to_token(self, position: int) -> int | None:
        """As ``Tokenized``."""
        starts, firsts = self._where()
        piece = bisect_right(starts, position) - 1
        inside = position - starts[piece]
        if inside < 0 or piece == len(self._pieces):
            return None
        if piece % 2:  # a control token
            return firsts[piece]
        places, inner_starts, inner_firsts = self._in(piece)
        part = bisect_right(inner_starts, inside) - 1
        inside -= inner_starts[part]
        found = next((number for number, (begin, end) in enumerate(places[part]) if begin <= inside < end), None)
        return None if found is None else firsts[piece] + inner_firsts[part] + found

    def token_to_chars(self, token: int) -> tuple[int, int] | None:
        """As ``Tokenized``."""
        starts, firsts = self._where()
        piece = bisect_right(firsts, token) - 1
        if token < 0 or piece == len(self._pieces):
            return None
        if piece % 2:
            return starts[piece], starts[piece + 1]
        places, inner_starts, inner_firsts = self._in(piece)
        inside = token - firsts[piece]
        part = bisect_right(inner_firsts, inside) - 1
        begin, end = places[part][inside - inner_firsts[part]]
        before = starts[piece] + inner_starts[part]
        return before + begin, before + end

    def _where(self) -> tuple[list[int], list[int]]:
        """Where each piece begins, and the end, in characters and in tokens."""
        if self._laid is None:
            sizes = [len(ids) // _BYTES for ids in self._found]
            self._laid = [0, *accumulate(map(len, self._pieces))], [0, *accumulate(sizes)]
        return self._laid

    def _in(self, piece: int) -> tuple[list[Places], list[int], list[int]]:
        """The places of the tokens in each part of a piece, and where the parts begin in it, in
        characters and in tokens."""
        if piece not in self._inner:
            parts = self._parts_of(self._pieces[piece])
            places = [of_part for _, of_part in parts]
            starts = [0, *accumulate(len(part) for part, _ in parts)]
            self._inner[piece] = places, starts, [0, *accumulate(map(len, places))]
        return self._inner[piece]


class PartTokenizer:
    """Encodes as a tokenizer of the library does, whose texts can be taken apart: see ``of``.

    ``control``: a pattern of the names of its control tokens; each begins with the character ``mark``.
    """

    def __init__(self, backend: Any, mark: str, control: str, lines_apart: bool) -> None:
        self._backend, self._mark = backend, mark
        pattern = _LINE_PART if lines_apart else _PART
        self._parts = re.compile(pattern.format(n=f"[^!-~{mark}]", m=f"[^ !-~{mark}]")).findall
        self._pieces = re.compile(f"({control})").split
        self._ids: dict[str, bytes] = {"": b""}
        self._places = lru_cache(4096)(self._placed)

    @classmethod
    def of(cls, backend: Any, parts: Mapping[str, Any], mark: str, control: str) -> PartTokenizer | None:
        """For a tokenizer of these ``parts`` (its JSON); None where it may not be so."""
        model, normalizer = parts["model"], parts["normalizer"]
        added = parts["added_tokens"]
        if (
            model["type"] != "BPE"
            or model.get("dropout")
            or (normalizer is not None and normalizer["type"] != "NFC")
            or not set(bytes_to_unicode().values()) <= model["vocab"].keys()
            or any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added)
            or not all(re.fullmatch(control, token["content"]) for token in added)
        ):
            return None
        lines_apart = _cut(parts["pre_tokenizer"])
        return None if lines_apart is None else cls(backend, mark, control, lines_apart)

    def encode(self, texts: Sequence[str]) -> list[Tokenized]:
        """Each text in tokens, without any around it."""
        if len(self._ids) > _MOST:
            self._ids = {"": b""}
        known = self._ids.get
        rows: list[tuple[list[str], list[Any]]] = []
        waiting: list[tuple[list[Any], int, list[str]]] = []
        new: dict[str, None] = {}
        for text in texts:
            pieces = self._pieces(text)
            found: list[Any] = list(map(known, pieces))
            rows.append((pieces, found))
            if text.count(self._mark) != len(pieces) // 2:  # it holds a part of a control token's name
                continue
            for at, ids in enumerate(found):
                if ids is not None:
                    continue
                piece = pieces[at]
                parts = [piece] if at % 2 else self._parts(piece)
                of_parts: list[Any] = list(map(known, parts))
                if None in of_parts:
                    new.update(
                        (part, None) for part, known_ids in zip(parts, of_parts, strict=True) if known_ids is None
                    )
                    waiting.append((found, at, parts))
                else:
                    found[at] = b"".join(of_parts)
                    if len(piece) <= _WHOLE:
                        self._ids[piece] = found[at]
        learned = self._learned(list(new))  # all at once: a call for each would take as long as the parts
        for found, at, parts in waiting:
            found[at] = b"".join([ids if (ids := known(part)) is not None else learned[part] for part in parts])
        return [
            InOne(self._backend.encode(text, add_special_tokens=False))
            if None in found
            else InParts(pieces, found, self._placed_parts)
            for text, (pieces, found) in zip(texts, rows, strict=True)
        ]

    def _learned(self, new: list[str]) -> dict[str, bytes]:
        """The ids of new parts, of which the long ones are not remembered."""
        long: dict[str, bytes] = {}
        for part, encoding in zip(new, self._backend.encode_batch(new, add_special_tokens=False), strict=True):
            (self._ids if len(part) <= _LONGEST else long)[part] = array("i", encoding.ids).tobytes()
        return long

    def _placed_parts(self, piece: str) -> list[tuple[str, Places]]:
        """The parts of a piece, and where the tokens of each begin and end in it."""
        return [(part, self._places(part)) for part in self._parts(piece)]

    def _placed(self, part: str) -> Places:
        return self._backend.encode(part, add_special_tokens=False).offsets


def _cut(pre_tokenizer: Mapping[str, Any] | None) -> bool | None:
    """Whether a line end before P is between two words, by a pattern that is known; None for another one."""
    steps = [pre_tokenizer] if pre_tokenizer is not None else []
    if pre_tokenizer is not None and pre_tokenizer["type"] == "Sequence":
        steps = pre_tokenizer["pretokenizers"]
    kinds = [step["type"] for step in steps]
    if kinds[-1:] != ["ByteLevel"] or steps[-1]["add_prefix_space"]:
        return None
    if kinds == ["ByteLevel"]:
        return False if steps[0]["use_regex"] else None
    if kinds != ["Split", "ByteLevel"] or steps[1]["use_regex"]:
        return None
    behaviour = (steps[0]["behavior"], steps[0]["invert"])
    if behaviour not in (("Isolated", False), ("Removed", True)):
        return None
    return True if steps[0]["pattern"].get("Regex") in _LINES_APART else None
