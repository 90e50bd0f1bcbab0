"""Texts in tokens, by parts that come again in row after row.

Byte-level BPE cuts a text into words by a pattern before it looks at letters. There are places that no word of the
patterns known here reaches over, and where what stands on one side does not change the words of the other. Between two
such places a text is a part: its tokens are its own, whatever is around it, so they are asked of the tokenizer once and
remembered. The places (P: ``!`` to ``~``):

    P, then a space    no word has a space behind anything but white space
    line end, then P   a word ends with its last line end; not so by GPT-2's pattern, in which of two line ends before P
                       the second is a word of its own, and at a text's end is not
    control tokens     are taken out of a text before it is cut
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any, Protocol

from transformers.convert_slow_tokenizer import bytes_to_unicode

_LETTERS = (r"\p{L}+", r"[\p{L}\p{M}]+")
_NO_LETTERS = {r"\p{L}+": r"[^\s\p{L}\p{N}]+", r"[\p{L}\p{M}]+": r"[^\s\p{L}\p{M}\p{N}]+"}
_LINES_APART = frozenset(
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{letters}|{digits}| ?{_NO_LETTERS[letters]}[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for letters in _LETTERS
    for digits in (r"\p{N}{1,3}", r"\p{N}")
)
"""The patterns of GPT-4, Llama 3 and Olmo, of Qwen 2 and 3, and of Qwen 3.5."""

_LONGEST, _MOST = 48, 2**17  # characters of a part that is remembered, and how many are
# the first, which most parts are, is also what the others would find there
_LINE_PART = r" [!-~]++(?= )|{c}|{n}*[\r\n](?=[!-~])|{n}*[!-~]+(?:{m}{n}*(?<![\r\n])[!-~]+)*(?:{m}{n}*)?|{n}+"
_PART = r" [!-~]++(?= )|{c}|{n}*[!-~]+(?:{m}{n}*[!-~]+)*(?:{m}{n}*)?|{n}+"

Ids = tuple[int, ...]
Places = list[tuple[int, int]]


class Tokenized(Protocol):
    """A text in tokens, as the tokenizers library gives it."""

    @property
    def ids(self) -> list[int]:
        """Of its tokens."""
        ...

    def char_to_token(self, char_pos: int, /) -> int | None:
        """The first token that holds a character; None where none does."""
        ...

    def token_to_chars(self, token_index: int, /) -> tuple[int, int] | None:
        """Where a token's characters begin and end."""
        ...


class InParts:
    """A text in tokens, put together from its parts. ``places``: where the tokens of a part begin and end in it."""

    def __init__(self, parts: list[str], found: list[Ids], places: Callable[[str], Places]) -> None:
        self.ids: list[int] = list(chain.from_iterable(found))
        self._parts, self._found, self._places = parts, found, places
        self._starts: list[int] | None = None

    def char_to_token(self, position: int) -> int | None:
        """As ``Tokenized``."""
        starts, firsts = self._laid()
        part = bisect_right(starts, position) - 1
        inside = position - starts[part]
        if inside < 0 or part == len(self._parts):
            return None
        if not inside and len(self._found[part]) == 1:
            return firsts[part]
        places = self._places(self._parts[part])
        found = next((number for number, (begin, end) in enumerate(places) if begin <= inside < end), None)
        return None if found is None else firsts[part] + found

    def token_to_chars(self, token: int) -> tuple[int, int] | None:
        """As ``Tokenized``."""
        starts, firsts = self._laid()
        part = bisect_right(firsts, token) - 1
        if token < 0 or part == len(self._parts):
            return None
        begin, end = self._places(self._parts[part])[token - firsts[part]]
        return starts[part] + begin, starts[part] + end

    def _laid(self) -> tuple[list[int], list[int]]:
        """Where each part begins, and the end, in characters and in tokens."""
        if self._starts is None:
            self._starts = [0, *accumulate(map(len, self._parts))]
            self._firsts = [0, *accumulate(map(len, self._found))]
        return self._starts, self._firsts


class PartTokenizer:
    """Encodes as a tokenizer of the library does, whose texts can be taken apart: see ``of``.

    ``control``: a pattern of the names of its control tokens; each begins with the character ``mark``.
    """

    def __init__(self, backend: Any, mark: str, control: str, lines_apart: bool) -> None:
        self._backend = backend
        pattern = _LINE_PART if lines_apart else _PART
        self._part = re.compile(pattern.format(c=f"{control}|{mark * 2}", n=f"[^!-~{mark}]", m=f"[^ !-~{mark}]"))
        self._between = mark * 2
        self._ids: dict[str, Ids] = {self._between: ()}
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
            self._ids = {self._between: ()}
        joined = self._between.join([*texts, ""])  # all at once: a call for each text would take as long as the parts
        parts = self._part.findall(joined)
        if joined.count(self._between) != len(texts) or sum(map(len, parts)) != len(joined):
            return self._encode_odd(texts)
        known = self._ids
        found: list[Any] = list(map(known.get, parts))
        if None in found:
            found = self._learned(parts, found)
        rows: list[Tokenized] = []
        begin = 0
        for _ in texts:
            end = parts.index(self._between, begin)
            rows.append(InParts(parts[begin:end], found[begin:end], self._places))
            begin = end + 1
        return rows

    def _encode_odd(self, texts: Sequence[str]) -> list[Tokenized]:
        """Texts of which one has a part of a control token's name and is not taken apart."""
        rows = []
        for text in texts:
            whole = sum(map(len, self._part.findall(text))) == len(text) and self._between not in text
            rows.append(self.encode([text])[0] if whole else self._backend.encode(text, add_special_tokens=False))
        return rows

    def _learned(self, parts: list[str], found: list[Ids | None]) -> list[Ids]:
        """The ids of parts of which some are new."""
        known, long = self._ids, dict[str, Ids]()
        new = list(dict.fromkeys(part for part, ids in zip(parts, found, strict=True) if ids is None))
        for part, encoding in zip(new, self._backend.encode_batch(new, add_special_tokens=False), strict=True):
            (known if len(part) <= _LONGEST else long)[part] = tuple(encoding.ids)
        return [
            ids if ids is not None else known[part] if part in known else long[part]
            for part, ids in zip(parts, found, strict=True)
        ]

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
