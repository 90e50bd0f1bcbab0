"""Texts that are met in others, by runs of eight words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

WORDS = 8
SHARE = 0.5
"""Of a question's runs of words, so many in one text mean that it was met there (as Ai2 counts, 2512.13961, 4.2.1)."""

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words of a text, lower case."""
    return _WORD.findall(text.lower())


def grams(words: Sequence[str], length: int) -> set[int]:
    """Hashes of runs of so many words, those left out of which more than half are single signs: formulas share
    these."""
    runs = (tuple(words[at : at + length]) for at in range(len(words) - length + 1))
    return {hash(run) for run in runs if 2 * sum(len(word) == 1 for word in run) <= length}


class Questions:
    """Questions that may be met in texts. One of fewer than WORDS words counts as one run of all of them."""

    def __init__(self, questions: Sequence[str]) -> None:
        self._sizes: list[int] = []
        self._holders: dict[int, list[int]] = {}
        lengths = {WORDS}
        for number, question in enumerate(questions):
            words = words_of(question)
            length = min(WORDS, len(words))
            found = grams(words, length) if length else set()
            lengths |= {length} if found else set()
            self._sizes.append(len(found))
            for gram in found:
                self._holders.setdefault(gram, []).append(number)
        self._lengths = sorted(lengths)

    def met_in(self, text: str) -> list[int]:
        """The numbers of the questions of which the text holds at least SHARE."""
        words = words_of(text)
        counts: Counter[int] = Counter()
        for length in self._lengths:
            for gram in grams(words, length):
                counts.update(self._holders.get(gram, ()))
        return [number for number, count in counts.items() if count >= SHARE * self._sizes[number]]
