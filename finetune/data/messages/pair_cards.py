"""Preference cards: YAML that says which columns of a dataset are the prompt and the two answers.

    signature: [[post, first, second, better]]       # columns by which such a file is known
    columns: {prompt: post, output_1: first, output_2: second, preference: better}
    preference: {a: 1, b: 2, neither: tie}           # what its values mean

A column is renamed, never rewritten: under its new name it may hold whatever that column may hold without a card.
``input.messages`` is what a column that holds an object has under that key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.data.messages.pair_forms import OUTPUTS, SIDES, PairForm, recognise_pairs
from hybrid_ft.finetune.data.messages.preference import Preference
from hybrid_ft.finetune.data.sources.rows import BadRow, Row, repr_number
from hybrid_ft.finetune.recipe import shipped
from hybrid_ft.finetune.recipe.mistakes import Mistakes
from hybrid_ft.finetune.recipe.nearest import did_you_mean
from hybrid_ft.finetune.recipe.yaml_file import read_yaml

_MISSING = object()


Ours = Literal["prompt", "system", "tools", "chosen", "rejected", "output_1", "output_2", "preference"]


class PairCard(BaseModel):
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    about: str = ""
    """the dataset, where it comes from, its licence"""
    signature: list[list[str]] = Field(default_factory=list)
    """sets of columns; a file that has all of one set looks like this dataset"""
    rows: str | None = None
    """where the rows lie inside one JSON object"""
    columns: dict[Ours, str]
    """which of the dataset's columns is which of ours"""
    preference: dict[str, Literal[1, 2, "tie"]] | None = None
    """which output each value of the preference column names"""

    @model_validator(mode="after")
    def _has_two_answers(self) -> PairCard:
        have = self.columns.keys()
        if not (set(SIDES) <= have or {*OUTPUTS, "preference"} <= have):
            raise ValueError("columns must name chosen and rejected, or output_1, output_2 and preference")
        if self.preference is not None and "preference" not in have:
            raise ValueError("preference needs columns.preference")
        return self


def load_pair_card(name: str) -> PairCard:
    """A preference card that ships with the project, by name, or a .yaml file. Raises InputError."""
    path = shipped.PAIR_CARDS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        names = shipped.card_names(shipped.PAIR_CARDS)
        near = did_you_mean(name, names)
        raise InputError(f"card {name}: neither a preference card that ships ({', '.join(names)}) nor a file{near}")
    text = read_yaml(path, "preference card", "signature:, columns:, preference:")
    mistakes = Mistakes(path, text)
    try:
        card = PairCard.model_validate(text.value)
    except ValidationError as error:
        mistakes.found_in_schema(error.errors(include_url=False, include_context=False), PairCard)
        raise InputError(mistakes.render()) from None
    return card


def suggested_pair_card(columns: Iterable[str]) -> str | None:
    """The shipped preference card whose signature a file's columns have, if there is one."""
    have = set(columns)
    names = shipped.card_names(shipped.PAIR_CARDS)
    return next((name for name in names if any(set(key) <= have for key in load_pair_card(name).signature)), None)


def pair_card_form(name: str, columns: Iterable[str]) -> PairForm:
    """The form that a card describes. ``columns``: those of the source, to refuse a card that fits none of its rows."""
    card = load_pair_card(name)
    have = set(columns)
    used = frozenset(column.split(".")[0] for column in card.columns.values())
    if missing := sorted(used - have):
        near = did_you_mean(missing[0], sorted(have))
        raise InputError(f"card {name}: no column {missing[0]}{near} (found {', '.join(sorted(have)) or 'none'})")
    form = recognise_pairs([Row(0, dict.fromkeys(card.columns))])
    assert form is not None, "every card has two answers"

    def convert(values: Mapping[str, Any]) -> Preference:
        found: dict[str, Any] = {ours: _at(values, theirs) for ours, theirs in card.columns.items()}
        renamed = {ours: value for ours, value in found.items() if value is not _MISSING}
        if card.preference is not None:
            renamed["preference"] = _meaning(card.preference, renamed.get("preference"), card.columns["preference"])
        try:
            return form.convert(renamed)
        except BadRow as bad:
            raise BadRow(bad.kind, _in_their_words(str(bad), card)) from None

    reads = ", ".join(f"{ours} from {theirs}" for ours, theirs in card.columns.items())
    return PairForm(f"card {name}", reads, used, convert)


def _at(values: Any, path: str) -> Any:
    for part in path.split("."):
        values = values[part] if isinstance(values, Mapping) and part in values else _MISSING
    return values


def _meaning(known: Mapping[str, int | str], value: Any, column: str) -> int | str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = repr_number(value).removesuffix(".0") if number else str(value).lower() if isinstance(value, bool) else value
    if not isinstance(text, str) or text not in known:
        raise BadRow("unknown preference", f"{column}: got {shown(value)}; the card knows {', '.join(known)}")
    return known[text]


def _in_their_words(text: str, card: PairCard) -> str:
    """A complaint about one of our columns, with the dataset's own name for it."""
    theirs = {str(ours): column for ours, column in card.columns.items()}
    return re.sub(r"^\w+", lambda match: theirs.get(match[0], match[0]), text)
