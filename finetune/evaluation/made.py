"""Long prompts made here, as RULER words its tasks: needles, variables, words."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybrid_ft.finetune.evaluation.task import Made

Count = Callable[[str], int]
"""Text to its tokens."""

_FILLER = (
    "The kettle was on, the window was open, and the street below was quiet.",
    "A train left the station at noon, and nobody on the platform waved.",
    "The library opens at nine on weekdays and closes when the last reader leaves.",
    "Rain fell on the harbour all morning, and the boats stayed where they were.",
    "She put the letter back into the drawer and went to look after the soup.",
    "Every house on that street has a red door, except for the one at the corner.",
)
_FIRST = ("amber", "brisk", "calm", "dusty", "eager", "faint", "gentle", "hollow", "icy", "jolly", "keen", "lucid")
_SECOND = (
    "anchor",
    "basket",
    "candle",
    "dragon",
    "engine",
    "feather",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kettle",
)
_SYLLABLES = (
    "ba",
    "co",
    "du",
    "fi",
    "ga",
    "he",
    "ju",
    "ka",
    "lo",
    "mi",
    "nu",
    "po",
    "ra",
    "se",
    "ti",
    "vo",
    "wa",
    "zu",
)
_PROBE = 64
"""The size that is tried first: large enough to tell a unit's tokens to a few per cent."""
_STEPS = 8
"""After so many sizes the rest is halved: tokens that do not grow in proportion."""


def made_rows(made: Made, count: Count) -> Iterator[tuple[str, str]]:
    """Questions of about ``made.tokens`` tokens, never more, each with its reference: a text to be found a line.

    Raises ValueError where the question alone is longer.
    """
    make = _KINDS[made.kind]
    for number in range(made.count):

        def of_size(size: int, number: int = number) -> tuple[str, str]:
            # the same row whatever the number of rows; of each size anew, until it fits
            return make(random.Random(f"{made.seed} {number}"), size)

        yield _fitted(of_size, made.tokens, count)


def _fitted(make: Callable[[int], tuple[str, str]], tokens: int, count: Count) -> tuple[str, str]:
    """A row that fits: within a five-hundredth of ``tokens``, or the largest, in units of filler.

    Tokens grow nearly in proportion to the size, so the last two counts say which size to try next. Only whole texts
    are counted, because tokens may reach over the seams of parts: at 65,536 tokens that takes longer than all the rest,
    and two or three suffice where a bisection takes twenty.
    """
    size, row = 0, make(0)
    found = count(row[0])
    if found > tokens:
        raise ValueError(f"made.tokens: got {tokens}; the question alone is longer")
    best, low, high, left = row, 0, math.inf, tokens - found
    wanted = _PROBE
    for step in itertools.count():
        row = make(wanted)
        now = count(row[0])
        each = max((now - found) / (wanted - size), 0.1)
        size, found = wanted, now
        if found <= tokens:
            best, low, left = row, size, tokens - found
        else:
            high = size
        if left <= tokens // 500 or high - low <= 1:
            break
        wanted = size + math.floor((tokens - tokens // 1000 - found) / each)
        if high < math.inf and step > _STEPS:
            wanted = (low + int(high)) // 2
        wanted = int(min(max(wanted, low + 1), high - 1))
    return best


def _key(chance: random.Random) -> str:
    return f"{chance.choice(_FIRST)}-{chance.choice(_SECOND)}-{chance.randrange(100)}"


def _of_all_sizes(chance: random.Random) -> random.Random:
    """A generator that is the same for a row of any size, if it is made first: a longer text begins as a shorter does,
    and their lengths differ by what is longer alone."""
    return random.Random(chance.getrandbits(64))


def _hidden(chance: random.Random, filler: random.Random, sentences: list[str], size: int) -> str:
    """Sentences at random places of ``size`` pieces of filler, in their own order."""
    places = sorted(chance.randrange(size + 1) for _ in sentences)
    pieces: list[str] = []
    waiting = list(zip(places, sentences, strict=True))
    for number in range(size + 1):
        while waiting and waiting[0][0] == number:
            pieces.append(waiting.pop(0)[1])
        if number < size:
            pieces.append(filler.choice(_FILLER))
    return " ".join(pieces)


def _needles(chance: random.Random, size: int, keys: int, values: int) -> tuple[str, str]:
    """Secret numbers of keys; the question is of one key, which has ``values`` of them."""
    filler = _of_all_sizes(chance)
    names: list[str] = []
    while len(names) < keys:
        name = _key(chance)
        names += [name] if name not in names else []
    facts = [
        (name, str(chance.randrange(10**6, 10**7))) for name in names for _ in range(values if name == names[0] else 1)
    ]
    chance.shuffle(facts)
    text = _hidden(chance, filler, [f"A secret number of {name} is {number}." for name, number in facts], size)
    asked = names[0]
    wanted = [number for name, number in facts if name == asked]
    what = "is the secret number" if values == 1 else f"are the {values} secret numbers"
    head = "The text below hides sentences about secret numbers. Remember them."
    question = f"What {what} of {asked} in the text above? Answer with the number{'s' * (values > 1)} alone."
    return f"{head}\n\n{text}\n\n{question}", "\n".join(wanted)


def _variables(chance: random.Random, size: int) -> tuple[str, str]:
    """Chains of assignments; the question is which variables come to one chain's value."""
    filler = _of_all_sizes(chance)
    names = chance.sample([f"{a}{b}{c}".upper() for a in "bcdfg" for b in "hjklm" for c in "npqrs"], 15)
    chains = [names[5 * chain : 5 * chain + 5] for chain in range(3)]
    values = chance.sample(range(10_000, 100_000), 3)
    lines = [
        [f"VAR {chain[0]} = {value}.", *(f"VAR {now} = VAR {was}." for was, now in itertools.pairwise(chain))]
        for chain, value in zip(chains, values, strict=True)
    ]
    order = chance.sample([chain for chain, part in enumerate(lines) for _ in part], 15)
    text = _hidden(chance, filler, [lines[chain].pop(0) for chain in order], size)
    head = "The text below hides assignments of variables. Follow them."
    question = (
        f"Which variables are assigned the value {values[0]} in the text above, also by way of others? Name all 5."
    )
    return f"{head}\n\n{text}\n\n{question}", "\n".join(chains[0])


def _word(chance: random.Random) -> str:
    return "".join(chance.choice(_SYLLABLES) for _ in range(chance.randint(2, 4)))


def _words(chance: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[_word(chance) if len(found) < 3000 else _word(chance) + _word(chance)] = None
    return list(found)


def _common(chance: random.Random, size: int) -> tuple[str, str]:
    """Ten words stand there ten times each, all others once."""
    words = _words(chance, 12 + size)
    text = words[:10] * 10 + words[10:]
    chance.shuffle(text)
    listed = " ".join(f"{number}. {word}" for number, word in enumerate(text, start=1))
    question = "What are the 10 most common words in the list above? Name all 10."
    return f"Count how often each word stands in this numbered list.\n\n{listed}\n\n{question}", "\n".join(words[:10])


def _frequent(chance: random.Random, size: int) -> tuple[str, str]:
    """Words as often as Zipf's law has them, exponent 2; the three most frequent are asked for."""
    words = _words(chance, 30 + min(size, 1000))
    counts = [max(1, round((40 + 2 * size) / rank**2)) for rank in range(1, len(words) + 1)]
    text = [word for word, times in zip(words, counts, strict=True) for _ in range(times)]
    chance.shuffle(text)
    question = "Which three words stand most often in the text above? Name all 3."
    return f"Count the words of this text.\n\n{' '.join(text)}\n\n{question}", "\n".join(words[:3])


_KINDS: dict[str, Callable[[random.Random, int], tuple[str, str]]] = {
    "needle": lambda chance, size: _needles(chance, size, keys=1, values=1),
    "needles": lambda chance, size: _needles(chance, size, keys=4 + size // 20, values=1),
    "many-values": lambda chance, size: _needles(chance, size, keys=1, values=4),
    "variables": _variables,
    "common-words": _common,
    "frequent-words": _frequent,
}
