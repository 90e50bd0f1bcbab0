"""Formats of preference rows, and how they become a prompt and two answers.

Every format comes down to two whole conversations, of which ``preference_from`` takes what they share. A side that
holds turns of its own from the first on (a list of messages, an hh-rlhf transcript) is whole already; a side that is an
answer alone stands after the row's prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hybrid_ft.errors import shown
from hybrid_ft.finetune.data.messages.beside import (
    BESIDE,
    QUESTION,
    left_beside_turns,
    question_from,
    row_mark,
    row_tools,
    system_from,
    with_system,
)
from hybrid_ft.finetune.data.messages.noticed import SCORES_REVERSED
from hybrid_ft.finetune.data.messages.preference import Messages, Preference, Unusable, preference_from
from hybrid_ft.finetune.data.messages.training_marks import KIND, Weights, first_mark
from hybrid_ft.finetune.data.messages.transcripts import is_transcript, split_transcript
from hybrid_ft.finetune.data.messages.turns import ROLES, names_of, refuse_media, text_from, turns_from
from hybrid_ft.finetune.data.sources.rows import BadRow, Row, columns_of, repr_number

Values = Mapping[str, Any]
SIDES = ("chosen", "rejected")
OUTPUTS = ("output_1", "output_2")
# the first of these that a source has is its prompt; "messages" comes last, since some sets keep the whole chosen
# conversation under that name beside the prompt
PROMPTS = ("prompt", "question", "instruction", "conversations", "conversation", "messages")
MORE_PROMPTS = ("query", "context", "input")
"""The same where none of PROMPTS is there."""
TIE = 0
SCORES = ("{}_score", "score_{}", "{}_rating", "rating_{}", "{}-rating", "{}-score")
"""Names of the columns of what the sides were rated."""


@dataclass(frozen=True)
class PairForm:
    """How a source's rows are read. ``reads``: the columns that are used, in words; ``columns``: their names."""

    name: str
    reads: str
    columns: frozenset[str]
    convert: Callable[[Values], Preference]


def recognise_pairs(rows: Iterable[Row]) -> PairForm | None:
    """The form of a source from its first rows, or None where the columns hold no pair."""
    rows = list(rows)
    held, columns = columns_of(rows)
    prompt = next((name for some in (held, columns) for name in (*PROMPTS, *MORE_PROMPTS) if name in some), None)
    forms = (_form(rows, some, prompt) for some in (held, columns))
    return next((form for form in forms if form is not None), None)


def _form(rows: list[Row], columns: set[str], prompt: str | None) -> PairForm | None:
    beside = BESIDE | ({prompt, *QUESTION} if prompt else set())
    if set(SIDES) <= columns:
        kind = _kind(rows, prompt)
        beside |= _score_columns(columns, *SIDES)
        used = beside if kind == "answers" else beside - {prompt, *QUESTION}
        return PairForm(kind, _reads(kind, prompt), frozenset(used | set(SIDES)), lambda row: _from_sides(row, prompt))
    if {*OUTPUTS, "preference"} <= columns:
        reads = f"preference says which of output_1 and output_2 answers {prompt or 'better'}"
        used = beside | {*OUTPUTS, "preference"} | _score_columns(columns, *OUTPUTS)
        return PairForm("outputs", reads, frozenset(used), lambda row: _from_outputs(row, prompt))
    return None


def _score_columns(columns: set[str], *sides: str) -> set[str]:
    names = [{name.format(side) for side in sides} for name in SCORES]
    return next((pair for pair in names if pair <= columns), set())


def _kind(rows: list[Row], prompt: str | None) -> str:
    """``transcripts``, ``conversations`` or ``answers``, from the first row that shows it."""
    for row in rows:
        value = row.values.get("chosen")
        if is_transcript(value):
            return "transcripts"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            first = ROLES.get(str(value[0].get(names_of(value[0])[0])).lower())
            return "answers" if first == "assistant" and prompt else "conversations"
        if isinstance(value, str | dict) and value:
            break
    return "answers"


def _reads(kind: str, prompt: str | None) -> str:
    if kind == "transcripts":
        return "chosen and rejected are Human: and Assistant: transcripts"
    if kind == "conversations":
        return "chosen and rejected hold whole conversations"
    asked = "instruction and input, a blank line between, are" if prompt == "instruction" else f"{prompt} is"
    return f"{asked} the prompt, chosen and rejected the answers" if prompt else "chosen and rejected, no prompt"


def _from_sides(values: Values, prompt: str | None) -> Preference:
    return _paired(values, prompt, "chosen", "rejected")


def _from_outputs(values: Values, prompt: str | None) -> Preference:
    best = preferred(values.get("preference"))
    if best == TIE:
        raise Unusable("no preference", "preference: a tie; neither output was preferred")
    chosen, rejected = OUTPUTS if best == 1 else OUTPUTS[::-1]
    return _paired(values, prompt, chosen, rejected)


def preferred(value: Any) -> int:
    """1 or 2 for the output that ``value`` names, TIE for neither. Raises BadRow.

    Numbers count from one; a table has them as text, and a column with gaps as fractions.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    text = repr_number(value) if number else value
    known = {"1": 1, "1.0": 1, "output_1": 1, "2": 2, "2.0": 2, "output_2": 2, "tie": TIE}
    found = known.get(text.strip().lower()) if isinstance(text, str) else None
    if found is None:
        raise BadRow("unknown preference", f"preference: got {shown(value)}; must be 1, 2, output_1, output_2 or tie")
    return found


def _paired(values: Values, prompt: str | None, chosen: str, rejected: str) -> Preference:
    unused: set[str] = set()
    sides = [_side(values, column, unused) for column in (chosen, rejected)]
    whole = [messages[0]["role"] != "assistant" for messages in sides]
    if not all(whole):
        before = _prompt(values, prompt, unused)
        if prompt is None and any(whole):  # an answer alone is another end of the conversation beside it
            before = sides[whole.index(True)][:-1]
        if prompt and is_transcript(values[prompt]):  # its last mark, Assistant:, leaves the space to the answer
            sides = [[answer | {"content": answer["content"].removeprefix(" ")}, *rest] for answer, *rest in sides]
        sides = [messages if own else before + messages for own, messages in zip(whole, sides, strict=True)]
    system = system_from(values)
    sides = [with_system(messages, system) for messages in sides]
    refuse_media(values)
    if (weight := row_mark(values)) != 1:
        raise BadRow(
            KIND, f"{first_mark(values)}: got {weight:g}; pairs have no weights, so leave the column or the pair out"
        )
    pair = preference_from(sides[0], sides[1], row_tools(values), unused)
    if (scores := _scores(values, chosen, rejected)) and scores[0] < scores[1]:
        pair.noticed[SCORES_REVERSED] = 1
    return pair


def _scores(values: Values, *sides: str) -> tuple[float, float] | None:
    """What a row's two sides were rated, where it says so."""
    for name in SCORES:
        found = [_number(values.get(name.format(side))) for side in sides]
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _side(values: Values, column: str, unused: set[str]) -> Messages:
    """What a column holds as messages: an answer alone, or a conversation."""
    value = values.get(column)
    if value is None or value == []:
        found = "missing" if column not in values else shown(value)
        raise BadRow(f"no {column} answer", f"{column} is {found}; a pair needs both answers")
    if is_transcript(value):
        return split_transcript(value)
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return _turns(value, column, unused)


def _turns(value: Any, column: str, unused: set[str]) -> Messages:
    """Messages, one alone or a list. Raises BadRow for an answer that its own marks take from
    the training, or lessen."""
    weights: dict[int, Weights] = {}
    messages = turns_from(value, column, unused, weights)
    if column in (*SIDES, *OUTPUTS) and len(messages) - 1 in weights:
        rule = "both answers of a pair are compared whole, so leave the mark or the pair out"
        raise BadRow(KIND, f"{column}[{len(messages) - 1}]: says that it is not trained, or not fully; {rule}")
    return messages


def _prompt(values: Values, column: str | None, unused: set[str]) -> Messages:
    """The messages that the answers of a row follow; none where the row has no prompt."""
    if column is None:
        return []
    value = values.get(column)
    if value is None:
        found = "missing" if column not in values else "null"
        raise BadRow("no prompt", f"{column} is {found}; the answers need what they answer")
    if isinstance(value, list | dict):
        messages = _turns(value, column, unused)
        unused |= left_beside_turns(values) - {column}
        if messages and messages[-1]["role"] == "assistant":
            text = f"{column} ends on an assistant's turn, so chosen and rejected answer nothing"
            raise BadRow("prompt ends on an answer", f"{text}; name the column that holds the prompt under columns")
        return messages
    text = text_from(value, column)
    if is_transcript(text) and (turns := split_transcript(text))[-1] == {"role": "assistant", "content": ""}:
        return turns[:-1]
    return question_from(text, {name: other for name, other in values.items() if name != column}, unused)
