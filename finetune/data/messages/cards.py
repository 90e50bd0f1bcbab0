"""Dataset cards: YAML that says which column of a dataset becomes which turn.

    signature: [[question, answer]]       # columns by which such a file is known
    messages:
      - {role: user, content: "{question}"}
      - {role: assistant, content: "{answer}"}

``{column}`` stands for a column's text; it is put in as it is and never read again, so braces in the data mean
nothing. ``{qa.answers.0}`` goes into objects and lists; ``{{`` and ``}}`` are plain braces. ``values`` names texts
made from a column: a list joined, a number turned into a word, a default where there is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.data.messages.conversation import ROLES
from hybrid_ft.finetune.recipe import shipped
from hybrid_ft.finetune.recipe.mistakes import Mistakes
from hybrid_ft.finetune.recipe.nearest import did_you_mean
from hybrid_ft.finetune.recipe.yaml_file import read_yaml

PLACE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


class Value(_Section):
    """A text made from one column."""

    column: str | list[str]
    """the column; of several, the first that a row has"""
    choose: dict[str, str] | None = None
    """the text for each value that the column may have"""
    each: str | None = None
    """of a list: how one item is written, from {item} and {number} (1, 2, ...) or {letter} (A, B, ...)"""
    join: str | None = None
    """of a list: what stands between its items"""
    default: str | None = None
    """the text where the column is missing, null or empty"""


class Turn(_Section):
    """One message."""

    role: Literal["system", "user", "assistant", "tool", "environment"]
    content: str | None = None
    reasoning: str | None = None
    tool_calls: str | None = None
    """the column that holds the calls, as objects or as JSON text"""
    when: str | None = None
    """a column or value; without it the message is left out"""


class Turns(_Section):
    """A column that holds a list of turns under other names."""

    column: str
    role: str
    content: str
    roles: dict[str, str] = Field(default_factory=dict)
    """which of our roles each of theirs is"""


class Card(_Section):
    about: str = ""
    """the dataset, where it comes from, its licence"""
    signature: list[list[str]] = Field(default_factory=list)
    """sets of columns; a file that has all of one set looks like this dataset"""
    rows: str | None = None
    """where the rows lie inside one JSON object"""
    values: dict[str, Value] = Field(default_factory=dict)
    messages: list[Turn] = Field(default_factory=list)
    turns: Turns | None = None
    tools: str | None = None
    """the column that holds function definitions"""

    @model_validator(mode="after")
    def _one_way(self) -> Card:
        if bool(self.messages) == bool(self.turns):
            raise ValueError("must have messages or turns, one of the two")
        for turn in self.messages:
            if turn.content is None and turn.tool_calls is None:
                raise ValueError(f"the {turn.role} message has neither content nor tool_calls")
        for text in self._texts():
            for match in PLACE.finditer(text):
                if match[0] in ("{", "}"):
                    raise ValueError(
                        f"brace in {shown(text)} opens or closes nothing; write {{{{ or }}}} for a plain one"
                    )
        for name, value in self.values.items():
            places = {match[1] or match[0] for match in PLACE.finditer(value.each or "")}
            if wrong := places - {"item", "number", "letter", "{{", "}}"}:
                raise ValueError(f"values.{name}.each: got {shown(min(wrong))}; knows {{item}}, {{number}}, {{letter}}")
        for role in (self.turns.roles if self.turns else {}).values():
            if role not in ROLES:
                raise ValueError(f"turns.roles: got {role!r}; must be one of {', '.join(ROLES)}")
        return self

    def _texts(self) -> Iterator[str]:
        for turn in self.messages:
            yield from (text for text in (turn.content, turn.reasoning) if text is not None)

    def columns(self) -> set[str]:
        """Every column that the card reads."""
        named = {match[1] for text in self._texts() for match in PLACE.finditer(text) if match[1]}
        named |= {turn.when for turn in self.messages if turn.when}
        named |= {turn.tool_calls for turn in self.messages if turn.tool_calls}
        named |= {self.tools} if self.tools else set()
        named |= {self.turns.column} if self.turns else set()
        named -= self.values.keys()
        for value in self.values.values():
            named |= {value.column} if isinstance(value.column, str) else set(value.column)
        return named


def load_card(name: str) -> Card:
    """A card that ships with the project, by name, or a .yaml file. Raises InputError."""
    path = shipped.CARDS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        names = shipped.card_names()
        near = did_you_mean(name, names)
        raise InputError(f"card {name}: neither a card that ships here ({', '.join(names)}) nor a file{near}")
    text = read_yaml(path, "dataset card", "signature:, messages:, turns:")
    mistakes = Mistakes(path, text)
    card = None
    try:
        card = Card.model_validate(text.value)
    except ValidationError as error:
        mistakes.found_in_schema(error.errors(include_url=False, include_context=False), Card)
    if mistakes:
        raise InputError(mistakes.render())
    assert card is not None
    return card


def suggested(columns: Iterable[str]) -> str | None:
    """The one shipped card whose signature a file's columns have; of several, the one that asks for most columns."""
    have = set(columns)
    fits: dict[str, int] = {}
    for name in shipped.card_names():
        sizes = [len(names) for names in load_card(name).signature if set(names) <= have]
        if sizes:
            fits[name] = max(sizes)
    best = [name for name, size in fits.items() if size == max(fits.values())]
    return best[0] if len(best) == 1 else None
