"""Lists of answers, and rejected answers beside a conversation, as pairs.

A row becomes rows of a prompt, ``chosen`` and ``rejected``, which the formats of pairs then read like any other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.data.messages.column_files import load_column_file
from hybrid_ft.finetune.data.messages.column_paths import at
from hybrid_ft.finetune.data.messages.pair_forms import MORE_PROMPTS, OUTPUTS, PROMPTS, SIDES, recognise_pairs
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.messages.text_lists import parsed
from hybrid_ft.finetune.data.messages.turns import names_of
from hybrid_ft.finetune.data.sources.rows import BadRow, Row, columns_of, looked_at

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Columns, Source

Values = Mapping[str, Any]
Item = Row | BadRow | Unusable

ANSWERS = ("responses", "completions", "answers", "candidates", "generations", "outputs")
SCORES = ("scores", "rewards", "ratings", "score", "reward", "rating")
RANKS = ("ranks", "rank")
ANSWER_KEYS = ("response", "completion", "answer", "content", "text", "output", "message", "messages")
SCORE_KEYS = ("overall_score", "score", "reward", "rating")
_TURNS = ("messages", "conversations", "conversation")
_REJECTED = ("rejected_messages", "rejected_response")
_LOOK_AHEAD = 64


@dataclass(frozen=True)
class _List:
    """Where a row's answers are. ``answer``: the key of an answer that is an object; ``scores``: a column, or a key of
    each answer; ``sign``: 1 where the highest is the best, -1 for ranks."""

    answers: str
    answer: str | None
    scores: str
    sign: int

    def in_words(self, every: bool) -> str:
        which = "every two answers that differ" if every else "the best answer against the worst"
        return f"{self.answers}: {which}, by {self.scores}"


Expand = Callable[[Iterator[Row | BadRow]], Iterator[Item]]
"""Puts pairs in the place of each row that holds several answers."""


def as_pairs(rows: Iterator[Row | BadRow], source: Source, notes: list[str]) -> tuple[Iterator[Item], Source]:
    """The rows, each that holds several answers in place of its pairs; and the source as those rows are to be read.

    Raises InputError for ``pairs: all`` where there are no such lists.
    """
    ahead, rows = looked_at(rows, _LOOK_AHEAD)
    expand, source = lists_of([row for row in ahead if isinstance(row, Row)], source, notes)
    return expand(rows), source


def lists_of(first: list[Row], source: Source, notes: list[str]) -> tuple[Expand, Source]:
    """What makes pairs of a source's rows, by its first ones, and the source as these pairs are to be read. Raises as
    ``as_pairs``."""
    columns, source = _mapped(source)
    form = _of_mapping(columns, first) if columns is not None else _recognised(first)
    every = source.pairs == "all"
    if isinstance(form, _List):
        notes.append(form.in_words(every))
        return lambda rows: _expanded(rows, lambda values: _pairs(values, form, every)), source
    if every:
        text = (
            "got all; the source holds no lists of answers with scores or ranks; leave it out, or map them by columns"
        )
        raise InputError(f"data.sources: {source.path}: pairs: {text}: {{answers: responses, scores: ratings}}")
    if form is not None:
        notes.append(f"{form[0]} holds the conversation with the chosen answer, {form[1]} the rejected one")
        return lambda rows: _expanded(rows, lambda values: _beside(values, *form)), source
    return iter, source


def holds_pairs(rows: list[Row]) -> bool:
    """Whether the first rows of a source hold pairs, or several answers each."""
    return recognise_pairs(rows) is not None or _recognised(rows) is not None


def _mapped(source: Source) -> tuple[Columns | None, Source]:
    """The source's mapping, and the source with a mapping of the pairs that lists become."""
    columns, roles = source.columns, source.roles
    if columns is not None and columns.file is not None:
        file = load_column_file(columns.file)
        columns, roles = file.columns, {**(file.roles or {}), **(roles or {})}
    if columns is None or columns.answers is None:
        return columns, source
    lists = {"answers": None, "answer": None, "scores": None, "ranks": None}
    pairs = columns.model_copy(update=lists | {"chosen": "chosen", "rejected": "rejected"})
    return columns, source.model_copy(update={"columns": pairs, "roles": roles or None})


def _of_mapping(columns: Columns, rows: list[Row]) -> _List | None:
    if columns.answers is None:
        return None
    found = {name for row in rows for name in row.values}
    if rows and columns.answers.split(".")[0] not in found and columns.answers not in found:
        raise InputError(f"columns: no column {columns.answers} (found {', '.join(sorted(found)) or 'none'})")
    scores = columns.scores or columns.ranks
    assert scores is not None, "the schema asks for one of them"
    return _List(columns.answers, columns.answer, scores, 1 if columns.scores else -1)


def _recognised(rows: list[Row]) -> _List | tuple[str, str] | None:
    """The form of a source from its first rows: a list, or the columns of a conversation and of a rejected answer."""
    columns = columns_of(rows)[0]
    if set(SIDES) <= columns or {*OUTPUTS, "preference"} <= columns:
        return None
    rejected = next((name for name in _REJECTED if name in columns), None)
    chosen = next((name for name in (*_TURNS, "response", "completion") if name in columns), None)
    if rejected and chosen:
        return chosen, rejected
    for name in ANSWERS:
        for row in rows:
            answers = _as_list(row.values.get(name))
            if not answers:
                continue
            form = _list_of(name, answers, row.values)
            if form is not None:
                return form
            break
    return None


def _list_of(name: str, answers: list[Any], values: Values) -> _List | None:
    first, answer = answers[0], None
    if isinstance(first, dict):
        first = {key: value for key, value in first.items() if value is not None}
        names = names_of(first)
        if not first.keys() >= set(names):
            answer = next((key for key in ANSWER_KEYS if key in first), None)
        if answer is None and names[0] not in first:
            return None
        for keys, sign in ((SCORE_KEYS, 1), (RANKS, -1)):
            if key := next((key for key in keys if key in first), None):
                return _List(name, answer, key, sign)
    beside = [(scores, sign) for names, sign in ((SCORES, 1), (RANKS, -1)) for scores in names]
    lengths = {scores: len(_as_list(values.get(scores)) or []) for scores, _ in beside}
    # the best fit first; one of another length is a mistake, and reading the row says so
    for fits in (lambda size: size == len(answers), bool):
        for scores, sign in beside:
            if fits(lengths[scores]):
                return _List(name, answer, scores, sign)
    return None


def _as_list(value: Any) -> list[Any] | None:
    """A list, also where a table holds it as text."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = parsed(value, "")
        except BadRow:
            return None
    return value if isinstance(value, list) else None


def _expanded(rows: Iterable[Row | BadRow], pairs: Callable[[Values], Iterable[dict[str, Any]]]) -> Iterator[Item]:
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            for values in pairs(row.values):
                yield Row(row.line, values, row.which, row.file)
        except (BadRow, Unusable) as bad:
            bad.line, bad.which, bad.file = row.line, row.which, row.file
            yield bad


def _beside(values: Values, chosen: str, rejected: str) -> Iterator[dict[str, Any]]:
    """The pair of a row whose rejected answer stands beside its conversation, or beside its answer."""
    for name in (chosen, rejected):
        if values.get(name) is None:
            raise BadRow(f"no {name}", f"{name} is null or missing; a pair needs both answers")
    left = {name: value for name, value in values.items() if name not in (chosen, rejected)}
    yield _with_prompt(left, values) | {"chosen": values.get(chosen), "rejected": values.get(rejected)}


def _with_prompt(left: dict[str, Any], values: Values) -> dict[str, Any]:
    if not any(name in left for name in PROMPTS):
        for name in MORE_PROMPTS:
            if isinstance(values.get(name), str | list) and name in left:
                return {key: value for key, value in left.items() if key != name} | {"prompt": left[name]}
    return left


def _pairs(values: Values, form: _List, every: bool) -> Iterator[dict[str, Any]]:
    """The pairs of a row's answers. Raises BadRow; Unusable where none was preferred."""
    given = at(values, form.answers)
    answers = _as_list(given)
    if answers is None:
        raise BadRow("wrong type", f"{form.answers}: got {shown(given)}; must be a list of answers")
    scored = _scored(values, form, answers)
    if len(scored) < 2:
        raise Unusable(
            "fewer than two answers", f"{form.answers}: {len(scored)} answers have a score; a pair needs two"
        )
    ordered = sorted(scored, key=lambda one: -one[0])
    if ordered[0][0] == ordered[-1][0]:
        raise Unusable("no preference", f"{form.scores}: all {len(scored)} answers have the same; none was preferred")
    left = {name: value for name, value in values.items() if name not in (form.answers, form.scores)}
    left = _with_prompt(left, values)
    two = itertools.combinations(ordered, 2) if every else [(ordered[0], ordered[-1])]
    for (better, chosen), (worse, rejected) in two:
        if better > worse:
            yield left | {"chosen": chosen, "rejected": rejected}


def _scored(values: Values, form: _List, answers: list[Any]) -> list[tuple[float, Any]]:
    """The answers that have a score, each with it, the higher the better. Raises BadRow."""
    column = at(values, form.scores)
    scores = _as_list(column)
    if scores is not None and len(scores) != len(answers):
        raise BadRow("scores", f"{form.scores}: has {len(scores)} values for {len(answers)} answers; must have as many")
    scored = []
    for index, answer in enumerate(answers):
        where = f"{form.answers}[{index}]"
        text = answer
        if form.answer is not None:
            if not isinstance(answer, dict):
                raise BadRow("wrong type", f"{where}: got {shown(answer)}; must be an object with {form.answer}")
            text = at(answer, form.answer)
        if scores is not None:
            score, of_score = scores[index], f"{form.scores}[{index}]"
        else:
            score, of_score = at(answer, form.scores) if isinstance(answer, dict) else None, f"{where}.{form.scores}"
            if isinstance(text, dict):  # a message that carries its own score
                text = {key: value for key, value in text.items() if key != form.scores}
            if score is None and not isinstance(answer, dict):
                raise BadRow("scores", f"{form.scores} is missing; must be a list beside {form.answers}")
        number = _number(score, of_score)
        if number is not None:
            if text is None:
                raise BadRow("null content", f"{where} is null; give its text")
            scored.append((form.sign * number, text))
    return scored


def _number(score: Any, where: str) -> float | None:
    """A score as a number, also from text; None where there is none, as some sets write it. Raises BadRow."""
    if score is None or (isinstance(score, str) and score.strip().lower() in ("", "n/a", "null", "none")):
        return None
    try:
        number = float(score) if isinstance(score, int | float | str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow("scores", f"{where}: got {shown(score)}; must be a number, or null for an answer without one")
    return number
