"""Column mappings: which column is which, inline or in a file.

    signature: [[question, answer]]       # columns by which such a file is known
    columns: {prompt: question, completion: answer}

A value is the name of a column, which is renamed and never rewritten (``input.messages`` goes into objects), or a Jinja2
template over the columns, whose text is put in as it is. See datasets/columns/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.data.messages.calls import tool_calls_from, tools_from
from hybrid_ft.finetune.data.messages.column_paths import MISSING, found_at
from hybrid_ft.finetune.data.messages.column_templates import ColumnTemplate, condition, is_template
from hybrid_ft.finetune.data.messages.conversation import Conversation, finished
from hybrid_ft.finetune.data.messages.pair_forms import PairForm, recognise_pairs
from hybrid_ft.finetune.data.messages.row_forms import Form, recognise
from hybrid_ft.finetune.data.messages.text_lists import with_lists
from hybrid_ft.finetune.data.messages.turns import MEDIA
from hybrid_ft.finetune.data.sources.rows import BadRow, Row, repr_number
from hybrid_ft.finetune.recipe.data_section import Columns, Preferred, Roles, Source, Turn
from hybrid_ft.finetune.recipe.mistakes import Mistakes, Wrong
from hybrid_ft.finetune.recipe.nearest import did_you_mean
from hybrid_ft.finetune.recipe.section import Section
from hybrid_ft.finetune.recipe.shipped import COLUMNS, column_names
from hybrid_ft.finetune.recipe.yaml_file import read_yaml

Values = Mapping[str, Any]
Noticed = dict[str, int]
# Columns that an advised mapping must not leave out: a question without them is another question.
_OF_QUESTION = {"options", "choices", "context", "contexts", "passage", "article", "input", "history", "table", "story"}
_OF_QUESTION |= {"system", "system_prompt", "tools", "functions", "document", "documents", "background", "hypothesis"}
_OF_QUESTION |= {"premise", "evidence", "facts", "schema", "paragraph", "passages", "starter_code", *MEDIA}
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
    for name in column_names():
        file = load_column_file(name)
        sizes = [len(names) for names in file.signature if set(names) <= have]
        left = any(map(part_of_question, have - _Read(file.columns).columns))
        if sizes and file.columns.pairs == pairs and not left:
            fits[name] = max(sizes)
    best = [name for name, size in fits.items() if size == max(fits.values())]
    return best[0] if len(best) == 1 else None


class _Read:
    """What a mapping reads, its templates parsed. Raises ValueError for a template that is not one."""

    def __init__(self, columns: Columns) -> None:
        self.templates: dict[str, ColumnTemplate] = {}
        self.paths: dict[str, str] = {}
        for ours, theirs in columns.named().items():
            if is_template(theirs):
                self.templates[ours] = ColumnTemplate(theirs)
            else:
                self.paths[ours] = theirs
        self.turns = [_TurnTemplates(turn) for turn in columns.messages or ()]
        texts = [*self.templates.values(), *(text for turn in self.turns for text in turn.all())]
        self.optional = {name for text in texts for name in text.optional}
        self.optional |= {name for turn in self.turns if turn.when for name in turn.when.columns}
        paths = [*self.paths.values(), *(turn.calls for turn in self.turns if turn.calls)]
        self.columns = {name for text in texts for name in text.columns} | {path.split(".")[0] for path in paths}
        self.whole = set(paths)

    def check(self, name: str, have: set[str]) -> None:
        """Raise InputError for a column that the source does not have."""
        named = {path for path in self.whole if path in have}
        heads = {path.split(".")[0] for path in named}
        missing = sorted(self.columns - self.optional - have - heads)
        if missing:
            found = ", ".join(sorted(have)) or "none"
            raise InputError(f"{name}: no column {missing[0]}{did_you_mean(missing[0], have)} (found {found})")


class _TurnTemplates:
    """One message of a mapping."""

    def __init__(self, turn: Turn) -> None:
        self.role, self.calls = turn.role, turn.tool_calls
        self.content = ColumnTemplate(turn.content) if turn.content is not None else None
        self.reasoning = ColumnTemplate(turn.reasoning) if turn.reasoning is not None else None
        self.when = condition(turn.when) if turn.when is not None else None

    def all(self) -> list[ColumnTemplate]:
        return [text for text in (self.content, self.reasoning, self.when) if text is not None]

    def message(self, values: Values, at: str) -> dict[str, Any] | None:
        """The message for a row; None where it is left out."""
        if self.when is not None and not self.when(values):
            return None
        message: dict[str, Any] = {"role": self.role, "content": self.content(values) if self.content else ""}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning(values)
        if self.calls is not None:
            calls = found_at(values, self.calls)
            if calls is MISSING or calls is None:
                found = "missing" if calls is MISSING else "null"
                raise BadRow("column missing", f"column {self.calls} is {found}; {at} needs it")
            message["tool_calls"] = tool_calls_from(calls, self.calls)
        return message


def row_format(source: Source, rows: list[Row]) -> Form | None:
    """How a source's rows are read: by its mapping, or else recognised; None where the columns are of no known format."""
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
            self._read = _Read(self.columns)
        except ValueError as error:
            raise InputError(f"data.sources: {source.path}: {self.name}: {error}") from None

    def check(self, rows: list[Row]) -> None:
        """Raise InputError for a column that none of the rows has."""
        self._read.check(self.name, {column for row in rows for column in row.values})

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
            found["messages"] = (
                [_renamed_turn(turn, self.columns.role, self.columns.content) for turn in turns]
                if isinstance(turns, list)
                else turns
            )
        return dict(self._with_roles(found)), noticed

    def as_turns(self, values: Values) -> tuple[Values, Noticed]:
        """The row with texts that hold lists of messages as these, and with the roles of its turns as ``roles`` says."""
        parsed, noticed = with_lists(values)
        return self._with_roles(parsed), noticed

    def _with_roles(self, values: Values) -> Values:
        return {name: self._mapped(value) for name, value in values.items()} if self._roles else values

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._mapped(item) for item in value]
        key = "role" if isinstance(value, dict) and "role" in value else "from"
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


def _renamed_turn(turn: Any, role: str | None, content: str | None) -> Any:
    """A turn with its role and its text under our names; whatever else it has stays."""
    if not isinstance(turn, dict) or (role is None and content is None):
        return turn
    renamed = {"role": role or "role", "content": content or "content"}
    left = {key: value for key, value in turn.items() if key not in {path.split(".")[0] for path in renamed.values()}}
    found = {ours: found_at(turn, path) for ours, path in renamed.items()}
    return left | {ours: value for ours, value in found.items() if value is not MISSING}


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
