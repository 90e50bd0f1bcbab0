"""Which evaluation rows were met in training, by runs of eight words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.plain_text import PlainText
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.reading import conversations, judgements, preferences
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.schema import Recipe

WORDS = 8
SHARE = 0.5

_WORD = re.compile(r"\w+")


def grams(text: str) -> set[int]:
    """Hashes of a text's runs of WORDS words, lower case; of a shorter text the whole."""
    words = _WORD.findall(text.lower())
    if not words:
        return set()
    return {hash(tuple(words[at : at + WORDS])) for at in range(max(1, len(words) - WORDS + 1))}


def met(questions: Sequence[str], training: Iterable[str]) -> list[bool]:
    """Of each question, whether one training row holds at least half of its 8-grams (as Ai2 counts, 2512.13961)."""
    whole = [grams(question) for question in questions]
    holders: dict[int, list[int]] = {}
    for number, found in enumerate(whole):
        for gram in found:
            holders.setdefault(gram, []).append(number)
    short = {len(_WORD.findall(question)) for question in questions}
    lengths = sorted({size for size in short if 0 < size < WORDS} | {WORDS})
    seen = [False] * len(questions)
    for text in training:
        words = _WORD.findall(text.lower())
        counts: Counter[int] = Counter()
        for length in lengths:
            for gram in {hash(tuple(words[at : at + length])) for at in range(len(words) - length + 1)}:
                counts.update(holders.get(gram, ()))
        for number, count in counts.items():
            seen[number] = seen[number] or count >= SHARE * len(whole[number])
    return seen


def recipe_of(name: str) -> Recipe:
    """A recipe, by its file or name, or the one that a run's folder keeps. Raises InputError."""
    kept = Path(name, "recipe.yaml")
    if Path(name).is_dir() and not kept.is_file():
        raise InputError(f"{name}: must be a recipe, or a run's folder with recipe.yaml in it")
    return load_recipe(kept if kept.is_file() else name)


def training_texts(recipe: Recipe) -> Iterator[str]:
    """All text of each row that a recipe trains on; rows that cannot be used are left out."""
    for source in recipe.data.sources:
        counts = SourceCounts(source.path)
        if recipe.kto is not None:
            for _, judged in judgements(source, counts):
                if not isinstance(judged, BadRow | Unusable):
                    yield "\n".join(str(turn["content"]) for turn in judged.conversation.messages)
            continue
        if recipe.of_pairs is None:
            for _, row in conversations(source, counts):
                if isinstance(row, PlainText):
                    yield row.text
                elif not isinstance(row, BadRow):
                    yield "\n".join(str(message["content"]) for message in row.messages)
            continue
        for _, pair in preferences(source, counts):
            if not isinstance(pair, BadRow | Unusable):
                turns = [*pair.prompt, pair.chosen, pair.rejected]
                yield "\n".join(str(turn["content"]) for turn in turns)
