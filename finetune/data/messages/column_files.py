"""Files of column mappings: loaded by name, and suggested for a source's columns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from pydantic import Field, ValidationError

from hybrid_ft.errors import InputError, did_you_mean
from hybrid_ft.finetune.data.messages.column_reads import Reads
from hybrid_ft.finetune.data.messages.turns import MEDIA
from hybrid_ft.finetune.recipe.data_section import Columns, Preferred, Roles
from hybrid_ft.finetune.recipe.mistakes import Mistakes, Wrong
from hybrid_ft.finetune.recipe.section import Section
from hybrid_ft.finetune.recipe.shipped import COLUMNS, column_names
from hybrid_ft.finetune.recipe.yaml_file import read_yaml

# Columns that an advised mapping must not leave out: a question without them is another question.
_OF_QUESTION = {
    *("options", "choices", "context", "contexts", "passage", "passages", "article", "input", "history", "table"),
    *("system", "system_prompt", "system_message", "system_instruction", "systeminstruction", "tools", "functions"),
    *("document", "documents", "background", "hypothesis", "premise", "evidence", "facts", "schema", "paragraph"),
    *("starter_code", "story", "dialogue", "ctxs", "search_results", "knowledge", "sent2"),
    *MEDIA,
}
_AN_OPTION = re.compile(r"[a-e]|(opt|option|choice|answer|distractor|sol|ending)s?[ _]?[a-e0-9]|\w+_(options|choices)")


def part_of_question(column: str) -> bool:
    """Whether a column's name says that it belongs to what is asked."""
    return column.lower() in _OF_QUESTION or _AN_OPTION.fullmatch(column.lower()) is not None


class ColumnFile(Section):
    """A mapping in a file of its own."""

    about: str = ""
    """the dataset, where it comes from, its licence"""
    signature: list[list[str]] = Field(default_factory=list)
    """sets of columns; a file that has all of one set looks like this dataset"""
    columns: Columns
    roles: Roles | None = None
    preference: Preferred | None = None


def load_column_file(name: str) -> ColumnFile:
    """A mapping that ships with the project, by name, or a .yaml file. Raises InputError."""
    path = COLUMNS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        names = column_names()
        known = f"neither a mapping that ships here ({', '.join(names)}) nor a file"
        raise InputError(f"columns {name}: {known}{did_you_mean(name, names)}")
    text = read_yaml(path, "column mapping", "signature:, columns:, roles:")
    mistakes = Mistakes(path, text)
    file = None
    try:
        file = ColumnFile.model_validate(text.value)
    except ValidationError as error:
        mistakes.found_in_schema(error.errors(include_url=False, include_context=False), ColumnFile)
    if file is not None and (wrong := file.columns.contradiction()):
        mistakes.found_in_values([Wrong(("columns",), wrong)])
    if file is None or mistakes:
        raise InputError(mistakes.render())
    return file


def suggested(columns: Iterable[str], *, pairs: bool) -> str | None:
    """The one shipped mapping whose signature a file's columns have; of several, the one that asks for most columns.

    None is suggested that would leave out a column which belongs to the question.
    """
    have = set(columns)
    fits: dict[str, int] = {}
    for name, (signature, of_pairs, read) in _shipped().items():
        sizes = [len(names) for names in signature if set(names) <= have]
        if sizes and of_pairs == pairs and not any(map(part_of_question, have - read)):
            fits[name] = max(sizes)
    best = [name for name, size in fits.items() if size == max(fits.values())]
    return best[0] if len(best) == 1 else None


@cache
def _shipped() -> dict[str, tuple[list[list[str]], bool, set[str]]]:
    """Signature, whether it is of pairs, and columns of each mapping that ships; they take half a second to read."""
    files = {name: load_column_file(name) for name in column_names()}
    return {name: (file.signature, file.columns.pairs, Reads(file.columns).columns) for name, file in files.items()}
