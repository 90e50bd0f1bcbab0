"""Arguments of a chat template: from a row, and as saved.

A result keeps it under ``chat_template_kwargs`` in ``tokenizer_config.json``, where transformers reads and writes keys
that it does not know as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError, did_you_mean, shown
from hybrid_ft.finetune.data.sources import strict_json
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.recipe.template_arguments import refused_argument

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMN = "chat_template_kwargs"
"""The column of a row, and the key in tokenizer_config.json."""

_NAME = re.compile(r"\b[A-Za-z_]\w*\b")
_LETTERS = re.compile(r"[\w.,:;/ +-]*")


def saved_arguments(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What was saved with a tokenizer, {} for nothing. Raises InputError for what no template can be given."""
    saved = tokenizer.init_kwargs.get(COLUMN)
    if saved is None:
        return {}
    place = f"{tokenizer.name_or_path}: tokenizer_config.json: {COLUMN}"
    if not isinstance(saved, dict):
        raise InputError(f"{place}: got {shown(saved)}; must be an object of names and values")
    for name, value in saved.items():
        if wrong := refused_argument(name, value):
            raise InputError(f"{place}.{name}: {wrong}")
    return saved


def save_arguments(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> None:
    """Keep the arguments with a tokenizer, in whatever is saved of it."""
    if arguments:
        tokenizer.init_kwargs[COLUMN] = dict(arguments)
    else:
        tokenizer.init_kwargs.pop(COLUMN, None)


def wrong_name(arguments: Mapping[str, Any], template: str, name: str) -> str | None:
    """The first argument that a template's text does not name, and why that is wrong; None where it names all."""
    known = set(_NAME.findall(template))
    for argument, value in arguments.items():
        if argument not in known:
            rule = f"chat template {name} does not use it"
            return f"{argument}: got {shown(value)}; {rule}{did_you_mean(argument, known)}"
    return None


def row_arguments(value: Any) -> dict[str, Any]:
    """A row's own arguments, an object or JSON text of one; a null in it, which tables put where a row
    has none, is none.

    Raises BadRow, also for a text that could be more than a word: what a template writes of it would be the template's.
    """
    if isinstance(value, str):
        value = strict_json.parse(value, f"{COLUMN}: ") if value.strip() else None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRow("wrong type", f"{COLUMN}: got {shown(value)}; must be an object of names and values")
    given = {name: inner for name, inner in value.items() if inner is not None}
    for name, inner in given.items():
        if wrong := refused_argument(name, inner):
            raise BadRow("template argument", f"{COLUMN}.{name}: {wrong}")
        if any(not _LETTERS.fullmatch(text) for text in _texts(inner)):
            rule = "a row may give words and numbers; put text for the model into a turn"
            raise BadRow("template argument", f"{COLUMN}.{name}: got {shown(inner)}; {rule}")
    return given


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, inner in value.items() for text in (key, *_texts(inner))]
    return [text for inner in value for text in _texts(inner)] if isinstance(value, list) else []
