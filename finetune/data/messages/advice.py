"""Column mappings to advise for unknown columns, each tried on the rows first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.answer_lists import holds_pairs
from hybrid_ft.finetune.data.messages.column_files import part_of_question, suggested
from hybrid_ft.finetune.data.messages.columns import pair_format, row_format
from hybrid_ft.finetune.data.messages.compared import CHOSEN, REJECTED, Meaning, judged_twos, side
from hybrid_ft.finetune.data.messages.flow_yaml import flow, scalar
from hybrid_ft.finetune.data.messages.judged_forms import judged_format, label_of
from hybrid_ft.finetune.data.messages.numbered_options import counted_options, right_option
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.messages.ratings import rated_by, scored_by
from hybrid_ft.finetune.data.messages.requests import turns_inside
from hybrid_ft.finetune.data.messages.turns import MEDIA, ROLES
from hybrid_ft.finetune.data.messages.written_columns import ANSWERS, answer_inside, key_of, ref, written
from hybrid_ft.finetune.data.sources.rows import BadRow, Row
from hybrid_ft.finetune.recipe.data_section import Columns

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source

Mapped = dict[str, str]
PAIRS_HERE = "the rows hold pairs, which hybrid-ft dpo trains on"


@dataclass(frozen=True)
class _Try:
    """Keys of a source that may read its rows. ``columns``: a mapping, or the name of one that ships."""

    columns: Mapped | str
    roles: dict[str, str] = field(default_factory=dict)
    labels: dict[int, bool] = field(default_factory=dict)
    preference: Meaning = field(default_factory=dict)

    def in_words(self) -> str:
        text = f"set columns: {self.columns if isinstance(self.columns, str) else flow(self.columns)}"
        if isinstance(self.columns, str):
            text = f"looks like {self.columns}: {text}"
        text += f" and roles: {flow(self.roles)}" if self.roles else ""
        text += f" and preference: {flow(self.preference)}" if self.preference else ""
        labels = ", ".join(f"{value}: {str(good).lower()}" for value, good in self.labels.items())
        return text + (f" and labels: {{{labels}}}" if labels else "")


_ROLE_KEYS = ("role", "from", "speaker", "sender", "author", "who", "user", "name", "type")
_TEXT_KEYS = ("content", "value", "text", "message", "utterance", "says", "said", "body", "parts")
_ASKS = frozenset(["user", "customer", "client", "patient", "student", "questioner", "prompter", "q"])
_QUESTIONS = ("question", "query", "problem", "prompt", "instruction", "request", "user", "human", "input_text")
_RARER_ANSWERS = ("targets", "outputs", "summary", "highlights", "code", "answerkey", "answer_key")
_RARER_QUESTIONS = (
    *("input", "inputs", "source", "article", "document", "passage", "nl", "dialogue", "question_stem"),
    *("goal", "sentence"),
)
"""Asked where nothing else is."""
_BEFORE = (
    *("context", "contexts", "passage", "article", "document", "documents", "table", "background", "story"),
    *("passages", "paragraph", "evidence", "dialogue", "ctxs", "search_results", "knowledge"),
)
"""What a question is about, which stands before it; options stand behind."""
_SYSTEM, _TOOLS, _TURNS = (
    ("system", "system_prompt", "system_message", "system_instruction", "systeminstruction"),
    ("tools", "functions"),
    ("history",),
)
_TURN_LISTS = ("conversation", "conversations", "dialog", "dialogue", "utterances", "data", "messages", "chat")
_SPEAKERS = ("speakers", "speaker", "roles", "role")
_INPUT = "text"
_STEM = "stem"
"""Of a question that is an object, the key of what is asked."""
_MOST_ROLES = 4


def advice(source: Source, rows: Sequence[Row], kind: str) -> str:
    """``set columns: {...}`` for the first mapping that reads the rows and leaves out nothing that
    belongs to a question, and that rows are pairs where they are; nothing where there is neither.
    ``kind``: rows, pairs or judged."""
    pairs = PAIRS_HERE if kind == "rows" and holds_pairs(list(rows)) else ""
    columns = list(dict.fromkeys(name for row in rows for name in row.values if name.isprintable()))
    for tried in _tries(columns, rows, kind, bool(pairs)):
        left = _left_out(source, rows, tried, kind)
        if left is None:
            continue
        text = f"{pairs}; for one answer of each {tried.in_words()}" if pairs else tried.in_words()
        text += f" (unused then: {', '.join(left[:6])}{', ...' if len(left) > 6 else ''})" if left else ""
        if kind == "rows" and (rated := rated_by(left, rows)):
            best = ", ".join(str(value) for value, good in rated[1].items() if good)
            text += f"; with only: {{{scalar(rated[0])}: [{best}]}} the better rated rows alone"
        return text
    return pairs


def _tries(columns: list[str], rows: Sequence[Row], kind: str, of_pairs: bool) -> Iterator[_Try]:
    """Mappings that may read the rows, the likeliest first."""
    if kind != "judged" and (name := suggested(columns, pairs=kind == "pairs")):
        yield _Try(name)
    if kind == "rows":
        for column in columns:
            yield from _of_turns(column, rows)
        for mapped, left in turns_inside(rows):
            if not any(map(part_of_question, left)):
                yield _Try(mapped)
    prompt = _prompt(columns, rows)
    if prompt is not None:
        yield from _of_answers(prompt, columns, rows, kind, of_pairs)
    if kind == "rows" and not any(name.lower() in _SPEAKERS for name in columns):
        for column in columns:
            if column.lower() in _TURN_LISTS and _says_in_turn([row.values.get(column) for row in rows]):
                yield _Try({"turns": column} | _beside(rows))


def _of_answers(prompt: Mapped, columns: list[str], rows: Sequence[Row], kind: str, of_pairs: bool) -> Iterator[_Try]:
    """Mappings of a prompt and its answers."""
    if kind == "pairs":
        chosen, rejected = side(columns, CHOSEN, rows), side(columns, REJECTED, rows)
        if chosen and rejected:
            yield _Try(prompt | {"chosen": chosen, "rejected": rejected})
        for two, meaning in judged_twos(columns, rows):
            yield _Try(prompt | two, preference=meaning)
    if kind == "rows" and (right := right_option(columns, rows)) is not None:
        yield _Try(prompt | {"completion": right[0]})
    answer = _one_of(columns, ANSWERS, rows) or _one_of(columns, _RARER_ANSWERS, rows)
    if answer is not None and counted_options(columns) and _numbers_alone(answer, rows):
        return  # the number of an option, and nothing shows which
    if answer is None:
        inside = answer_inside(columns, rows) if kind == "rows" and not of_pairs else None
        if inside is not None:
            yield _Try(prompt | {"completion": inside})
        return
    mapped = prompt | {"completion": _answer(answer, columns, rows)}
    if kind == "rows":
        yield _Try(mapped)
        return
    for column in columns:
        values = [row.values.get(column) for row in rows]
        if any(isinstance(value, bool) for value in values) and all(isinstance(v, bool | None) for v in values):
            yield _Try(mapped | {"label": column})
    if rated := rated_by(columns, rows):
        yield _Try(mapped | {"label": rated[0]}, labels=rated[1])
    elif scored := scored_by(columns, rows):
        yield _Try(mapped | {"label": scored})


def _numbers_alone(column: str, rows: Sequence[Row]) -> bool:
    return all(str(value := row.values.get(column)).isdecimal() or value in (None, "") for row in rows)


def _says_in_turn(values: list[Any]) -> bool:
    """Whether a column may hold texts that user and assistant say in turn."""
    lists = [value for value in values if value]
    return bool(lists) and all(
        isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value) for value in lists
    )


def _left_out(source: Source, rows: Sequence[Row], tried: _Try, kind: str) -> list[str] | None:
    """The columns that the mapping leaves out; None where it cannot read the rows, or leaves out what matters."""
    mapped = tried.columns
    columns = Columns.model_validate({"file": mapped} if isinstance(mapped, str) else mapped)
    update: dict[str, Any] = {"columns": columns, "format": None, "labels": tried.labels or source.labels}
    update |= ({"roles": tried.roles} if tried.roles else {}) | (
        {"preference": tried.preference} if tried.preference else {}
    )
    tried_source = source.model_copy(update=update)
    kind = "judged" if columns.label else kind
    try:
        form = _format_of(kind)(tried_source, list(rows))
    except InputError:
        return None
    if form is None:
        return None
    read = 0
    for row in rows:
        try:
            form.convert(row.values)
            read += 1
        except BadRow:
            continue
        except Unusable:
            read += 1  # a tie, or no score: read as it is meant
    have = {name: None for row in rows for name, value in row.values.items() if value not in (None, "", [], {})}
    left = [name for name in have if name not in form.columns]
    return None if 2 * read < len(rows) or any(map(part_of_question, left)) else left


def _format_of(kind: str) -> Callable[[Source, list[Row]], Any]:
    if kind == "judged":

        def judged(source: Source, rows: list[Row]) -> Any:
            label = label_of(source, rows)
            return None if label is None else judged_format(source, label, rows)

        return judged
    return pair_format if kind == "pairs" else row_format


def _of_turns(column: str, rows: Sequence[Row]) -> Iterator[_Try]:
    """A column of turns under another name, with its keys and what its roles mean."""
    lists = [value for row in rows if isinstance(value := row.values.get(column), list) and value]
    turns = [turn for value in lists for turn in value]
    if not turns or column in _TURNS or not all(isinstance(turn, dict) for turn in turns):
        return
    own = {key.lower(): key for turn in turns for key in turn}
    roles_keys, text_keys = ([own[name] for name in names if name in own] for names in (_ROLE_KEYS, _TEXT_KEYS))
    role = next((key for key in roles_keys if all(isinstance(turn.get(key), str) for turn in turns)), None)
    held = [key for key in text_keys if key != role and any(turn.get(key) for turn in turns)]
    if role is None or not held:
        return
    said = list(dict.fromkeys(turn[role] for turn in turns))
    if len(said) > _MOST_ROLES + len(ROLES):
        return
    roles = _meanings(said)
    if roles is not None:
        yield _Try({"turns": column, "role": role, "content": held[0]} | _beside(rows), roles)


def _meanings(said: list[str]) -> dict[str, str] | None:
    """What unknown roles mean: who is one of two and asks, or speaks first, is the user; None where
    that cannot be told."""
    unknown = [role for role in said if role not in ROLES]
    roles = {role: ROLES[role.lower()] for role in unknown if role.lower() in ROLES}
    unknown = [role for role in unknown if role not in roles]
    taken = {ROLES[role] for role in said if role in ROLES} | set(roles.values())
    missing = [role for role in ("user", "assistant") if role not in taken]
    if not unknown:
        return roles
    if len(unknown) != len(missing) or not all(role.isprintable() for role in unknown):
        return None
    if len(unknown) == 2 and unknown[1].lower() in _ASKS and unknown[0].lower() not in _ASKS:
        unknown.reverse()
    return roles | dict(zip(unknown, missing, strict=True))


def _one_of(columns: list[str], names: tuple[str, ...], rows: Sequence[Row]) -> str | None:
    """The one column of such a name that holds texts or numbers in most rows; None where there are several."""
    found = [
        name
        for name in columns
        if name.lower() in names
        and 2 * sum(isinstance(row.values.get(name), str | int | float) and row.values[name] != "" for row in rows)
        >= len(rows)
    ]
    return found[0] if len(found) == 1 else None


def _prompt(columns: list[str], rows: Sequence[Row]) -> Mapped | None:
    """The question, with what belongs to it; None where there is none, or where that is not text."""
    question = _one_of(columns, _QUESTIONS, rows) or _one_of(columns, _RARER_QUESTIONS, rows)
    if question is not None:
        own, inside = ref(question), None
    else:
        question = next((name for name in columns if name.lower() in _QUESTIONS and _has_stem(name, rows)), None)
        if question is None:
            return None
        inside = ref(question)
        own = key_of(inside, _STEM)
    before, after = "", ""
    parts = [(name, ref(name), [row.values.get(name) for row in rows]) for name in columns if name != question]
    if inside is not None:
        objects = [row.values[question] for row in rows]
        parts += [(key, key_of(inside, key), [one.get(key) for one in objects]) for key in objects[0] if key != _STEM]
    for name, where, values in parts:
        some = [value for value in values if value not in (None, "", [], {})]
        if not some or not (part_of_question(name) or _is_input(name, question, rows)):
            continue
        if name.lower() in (*MEDIA, *_TURNS):
            return None
        if name.lower() in _SYSTEM or name.lower() in _TOOLS:
            continue
        first = name.lower() in _BEFORE or name.lower() == _INPUT
        text = written(name, where, some, first)
        if text is None:
            return None
        if len(some) < len(rows):
            text = f"{{% if {where} is defined and {where} %}}{text}{{% endif %}}"
        before, after = (before + text, after) if first else (before, after + text)
    whole = before or after or inside
    return {"prompt": f"{before}{{{{ {own} }}}}{after}" if whole else question} | _beside(rows)


def _is_input(name: str, question: str, rows: Sequence[Row]) -> bool:
    """Whether a column text is what an instruction is about, and not the whole row written out."""
    texts = [(row.values.get(name) or "", row.values.get(question)) for row in rows]
    return name.lower() == _INPUT and all(
        isinstance(text, str) and isinstance(asked, str) and (asked or name) not in text for text, asked in texts
    )


def _has_stem(name: str, rows: Sequence[Row]) -> bool:
    return all(isinstance(one := row.values.get(name), dict) and isinstance(one.get(_STEM), str) for row in rows)


def _beside(rows: Sequence[Row]) -> Mapped:
    """The columns of the system text and of tools."""
    have = [name for row in rows for name, value in row.values.items() if value]
    found = {
        ours: [name for name in have if name.lower() in names]
        for ours, names in (("system", _SYSTEM), ("tools", _TOOLS))
    }
    beside = {ours: names[0] for ours, names in found.items() if names}
    if "system" in beside and all(_has_parts(row.values.get(beside["system"])) for row in rows):
        beside["system"] += ".parts.0.text"
    return beside


def _has_parts(value: Any) -> bool:
    """Whether a system text is an object of one part, as Gemini's are."""
    parts = value.get("parts") if isinstance(value, dict) else None
    return (
        isinstance(parts, list)
        and len(parts) == 1
        and isinstance(parts[0], dict)
        and isinstance(parts[0].get("text"), str)
    )


def _answer(answer: str, columns: list[str], rows: Sequence[Row]) -> str:
    """The answer's column; where it is a number and the options a list, the option of that number."""
    options = [name for name in columns if name.lower() in ("options", "choices")]
    numbers = all(type(row.values.get(answer)) is int for row in rows)
    if len(options) == 1 and numbers and all(isinstance(row.values.get(options[0]), list) for row in rows):
        return f"{{{{ {ref(options[0])}[{ref(answer)}] }}}}"
    if all(isinstance(row.values.get(answer), bool) for row in rows):
        return f"{{{{ 'yes' if {ref(answer)} else 'no' }}}}"
    texts = all(isinstance(row.values.get(answer), str | None) for row in rows)
    return answer if texts else f"{{{{ {ref(answer)} }}}}"  # a template writes numbers as text
