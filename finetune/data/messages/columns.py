"""Column mappings: which column is which, inline or in a file.

    signature: [[question, answer]]       # columns by which such a file is known
    columns: {prompt: question, completion: answer}

A value is the name of a column, which is renamed and never rewritten (``input.messages`` goes into objects), or a
Jinja2 template over the columns, whose text is put in as it is. See datasets/columns/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.data.messages.calls import tools_from
from hybrid_ft.finetune.data.messages.column_files import load_column_file
from hybrid_ft.finetune.data.messages.column_paths import MISSING, found_at, renamed_turns
from hybrid_ft.finetune.data.messages.column_reads import Reads
from hybrid_ft.finetune.data.messages.conversation import Conversation, finished
from hybrid_ft.finetune.data.messages.pair_forms import PairForm, recognise_pairs
from hybrid_ft.finetune.data.messages.row_forms import Form, recognise
from hybrid_ft.finetune.data.messages.text_lists import with_lists
from hybrid_ft.finetune.data.messages.turns import names_of
from hybrid_ft.finetune.data.sources.rows import BadRow, Row, repr_number
from hybrid_ft.finetune.recipe.data_section import Source

Values = Mapping[str, Any]
Noticed = dict[str, int]


def row_format(source: Source, rows: list[Row]) -> Form | None:
    """How a source's rows are read: by its mapping, or else recognised; None where the columns are
    of no known format."""
    mapping = _Mapping(source, pairs=False)
    if mapping.columns is None:
        form = recognise(mapping.samples(rows), source.format)
        return form and Form(form.name, form.reads, form.columns, mapping.converted(form.convert, mapping.as_turns))
    mapping.check(rows)
    if mapping.columns.messages is not None:
        return Form(mapping.name, mapping.in_words(), mapping.used(rows), mapping.conversation)
    form = recognise(mapping.samples(rows), None)
    if form is None:
        raise InputError(f"{mapping.name}: maps neither turns nor prompt and completion; name one of the two")
    return Form(mapping.name, mapping.in_words(), mapping.used(rows), mapping.converted(form.convert, mapping.renamed))


def pair_format(source: Source, rows: list[Row]) -> PairForm | None:
    """The same for pairs."""
    mapping = _Mapping(source, pairs=True)
    if mapping.columns is None:
        form = recognise_pairs(mapping.samples(rows))
        return form and PairForm(form.name, form.reads, form.columns, mapping.converted(form.convert, mapping.as_turns))
    mapping.check(rows)
    form = recognise_pairs([Row(0, dict.fromkeys(mapping.columns.named()))])
    assert form is not None, "the schema asks for two answers"
    return PairForm(
        mapping.name, mapping.in_words(), mapping.used(rows), mapping.converted(form.convert, mapping.renamed)
    )


class _Mapping:
    """A source's mapping, from its recipe and from the file that this names. ``columns`` is None where it has none."""

    def __init__(self, source: Source, *, pairs: bool) -> None:
        self._path = source.path
        self.name, self.columns = "columns", source.columns
        self._roles: dict[str, str] = dict(source.roles or {})
        self._preference = source.preference
        if self.columns is not None and self.columns.file is not None:
            file = load_column_file(self.columns.file)
            self.name, self.columns = f"columns {self.columns.file}", file.columns
            self._roles = {**(file.roles or {}), **self._roles}
            self._preference = self._preference or file.preference
        if self.columns is None:
            return
        if self.columns.pairs != pairs:
            rows, recipe = ("rows", "pairs") if pairs else ("pairs", "rows")
            raise InputError(f"data.sources: {source.path}: {self.name}: is for {rows}; the recipe trains on {recipe}")
        try:
            self._read = Reads(self.columns)
        except ValueError as error:
            raise InputError(f"data.sources: {source.path}: {self.name}: {error}") from None

    def check(self, rows: list[Row]) -> None:
        """Raise InputError for a column that none of the rows has."""
        self._read.check(f"{self._path}: {self.name}", {column for row in rows for column in row.values})

    def used(self, rows: list[Row]) -> frozenset[str]:
        """The source's columns that are read."""
        have = {column for row in rows for column in row.values}
        return frozenset(self._read.columns | (self._read.whole & have))

    def in_words(self) -> str:
        """What is read, for the account."""
        assert self.columns is not None
        if self.columns.messages is None:
            return ", ".join(f"{ours} from {self._source_of(ours)}" for ours in self.columns.named())
        parts = []
        for turn in self._read.turns:
            names = sorted(name for text in turn.all() for name in text.columns) + ([turn.calls] if turn.calls else [])
            parts.append(f"{turn.role} from {', '.join(dict.fromkeys(names)) or 'the mapping'}")
        return "; ".join(parts)

    def _source_of(self, ours: str) -> str:
        template = self._read.templates.get(ours)
        return ", ".join(sorted(template.columns)) or "the mapping" if template else self._read.paths[ours]

    def samples(self, rows: list[Row]) -> list[Row]:
        """The first rows as they are renamed, without templates filled in: what the format is recognised by."""
        blank = dict.fromkeys(self._read.templates) if self.columns is not None else {}
        samples = []
        for row in rows:
            try:
                values, _ = self.as_turns(row.values) if self.columns is None else self._with_paths(row.values)
            except BadRow:  # said when its turn comes
                values = row.values
            samples.append(Row(row.line, blank | dict(values)))
        return samples

    def renamed(self, values: Values) -> tuple[Values, Noticed]:
        """A row under our names, and what was noticed. Raises BadRow."""
        found, noticed = self._with_paths(values)
        found |= {name: text(values) for name, text in self._read.templates.items()}
        if self._preference is not None:
            found["preference"] = _meaning(self._preference, found.get("preference"), self._source_of("preference"))
        return found, noticed

    def _with_paths(self, values: Values) -> tuple[dict[str, Any], Noticed]:
        found = {ours: found_at(values, path) for ours, path in self._read.paths.items()}
        parsed, noticed = with_lists({ours: value for ours, value in found.items() if value is not MISSING})
        found = dict(parsed)
        assert self.columns is not None
        if "turns" in found:
            turns = found.pop("turns")
            found["messages"] = renamed_turns(turns, self.columns.role, self.columns.content)
        return dict(self._with_roles(found)), noticed

    def as_turns(self, values: Values) -> tuple[Values, Noticed]:
        """The row with texts that hold lists of messages as these, and with the roles of its
        turns as ``roles`` says."""
        parsed, noticed = with_lists(values)
        return self._with_roles(parsed), noticed

    def _with_roles(self, values: Values) -> Values:
        return {name: self._mapped(value) for name, value in values.items()} if self._roles else values

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._mapped(item) for item in value]
        key = names_of(value)[0] if isinstance(value, dict) else ""
        if isinstance(value, dict) and isinstance(value.get(key), str | int):
            return value | {key: self._roles.get(as_key(value[key]), value[key])}
        return value

    def converted(
        self, convert: Callable[[Values], Any], rename: Callable[[Values], tuple[Values, Noticed]]
    ) -> Callable[[Values], Any]:
        """``convert`` on renamed rows, complaints in the dataset's own names."""

        def go(values: Values) -> Any:
            try:
                renamed, noticed = rename(values)
                made = convert(renamed)
            except BadRow as bad:
                raise BadRow(bad.kind, self._in_their_words(str(bad))) from None
            made.noticed |= noticed
            return made

        return go

    def _in_their_words(self, text: str) -> str:
        if self.columns is None:
            return text
        theirs = self._read.paths | ({"messages": turns} if (turns := self._read.paths.get("turns")) else {})
        return re.sub(r"^\w+", lambda match: theirs.get(match[0], match[0]), text)

    def conversation(self, values: Values) -> Conversation:
        """A row whose messages the mapping spells out. Raises BadRow."""
        row, labels = Conversation([]), []
        for index, turn in enumerate(self._read.turns):
            at = f"columns.messages[{index}]"
            if (message := turn.message(values, at)) is not None:
                row.messages.append(message)
                labels.append(at)
        tools = self._read.paths.get("tools")
        if tools and (value := found_at(values, tools)) is not MISSING:
            row.tools = tools_from(value, tools)
        return finished(row, "columns.messages", labels)


def _meaning(known: Mapping[str, int | str], value: Any, column: str) -> int | str:
    text = as_key(value)
    if text not in known:
        raise BadRow("unknown preference", f"{column}: got {shown(value)}; must be one of {', '.join(known)}")
    return known[text]


def as_key(value: Any) -> str:
    """A value as YAML's keys spell it: 1.0 is 1, True is true."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr_number(value).removesuffix(".0")
    return value if isinstance(value, str) else shown(value)
