"""Which evaluation rows were met in training, by runs of eight words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.grams import Questions
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.messages.text_of import text_of
from hybrid_ft.finetune.data.reading import conversations, judgements, preferences
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.schema import Recipe


def met(questions: Sequence[str], training: Iterable[str]) -> list[bool]:
    """Of each question, whether one training row holds at least half of its 8-grams (as Ai2 counts, 2512.13961)."""
    asked, seen = Questions(questions), [False] * len(questions)
    for text in training:
        for number in asked.met_in(text):
            seen[number] = True
    return seen


def recipe_of(name: str) -> Recipe:
    """A recipe, by its file or name, or the one that a run's folder keeps. Raises InputError."""
    kept = Path(name, "recipe.yaml")
    if Path(name).is_dir() and not kept.is_file():
        raise InputError(f"{name}: must be a recipe, or a run's folder with recipe.yaml in it")
    return load_recipe(kept if kept.is_file() else name)


def training_texts(recipe: Recipe) -> Iterator[str]:
    """All text of each row that a recipe trains on; rows that cannot be used are left out."""
    read = judgements if recipe.kto is not None else conversations if recipe.of_pairs is None else preferences
    for source in recipe.data.sources:
        for _, row in read(source, SourceCounts(source.path)):
            if not isinstance(row, BadRow | Unusable):
                yield text_of(row)
