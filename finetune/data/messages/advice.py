"""Column mappings to advise for unknown columns, each tried on the rows first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.answer_lists import holds_pairs
from hybrid_ft.finetune.data.messages.columns import pair_format, part_of_question, row_format, suggested
from hybrid_ft.finetune.data.messages.judged_forms import judged_format, label_of
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.messages.turns import MEDIA, ROLES
from hybrid_ft.finetune.data.sources.rows import BadRow, Row
from hybrid_ft.finetune.recipe.data_section import Columns

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source

Mapped = dict[str, str]
Try = tuple[Mapped | str, dict[str, str]]

_ROLE_KEYS = ("role", "from", "speaker", "sender", "author", "who", "user", "name", "type")
_TEXT_KEYS = ("content", "value", "text", "message", "utterance", "says", "said", "body", "parts")
_ASKS = frozenset(["user", "customer", "client", "patient", "student", "questioner", "prompter", "q"])
_QUESTIONS = ("question", "query", "problem", "prompt", "instruction", "request", "user", "human", "input_text")
_ANSWERS = ("answer", "response", "output", "completion", "solution", "reply", "target", "assistant", "output_text")
_CHOSEN = ("chosen", "preferred", "good", "better", "winner", "accepted", "positive", "win")
_REJECTED = ("rejected", "dispreferred", "bad", "worse", "loser", "negative", "lose")
_BEFORE = ("context", "contexts", "passage", "article", "document", "documents", "table", "background", "story")
"""What a question is about, which stands before it; options stand behind."""
_SYSTEM, _TOOLS, _TURNS = ("system", "system_prompt"), ("tools", "functions"), ("history",)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_YAML_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST_ROLES = 4


def advice(source: Source, rows: Sequence[Row], kind: str) -> str:
    """``set columns: {...}`` for the first mapping that reads the rows and leaves out nothing that belongs to a question,
    and that rows are pairs where they are; nothing where there is neither. ``kind``: rows, pairs or judged."""
    pairs = "the rows hold pairs, which hybrid-ft dpo trains on" if kind == "rows" and holds_pairs(list(rows)) else ""
    columns = list(dict.fromkeys(name for row in rows for name in row.values if name.isprintable()))
    for mapped, roles in _tries(columns, rows, kind):
        left = _left_out(source, rows, mapped, roles, kind)
        if left is None:
            continue
        text = f"set columns: {mapped if isinstance(mapped, str) else _flow(mapped)}"
        if isinstance(mapped, str):
            text = f"looks like {mapped}: {text}"
        text += f" and roles: {_flow(roles)}" if roles else ""
        text = f"{pairs}; for one answer of each {text}" if pairs else text
        return text + (f" (unused then: {', '.join(left[:6])}{', ...' if len(left) > 6 else ''})" if left else "")
    return pairs


def _tries(columns: list[str], rows: Sequence[Row], kind: str) -> Iterator[Try]:
    """Mappings that may read the rows, the likeliest first."""
    if kind != "judged" and (name := suggested(columns, pairs=kind == "pairs")):
        yield name, {}
    if kind == "rows":
        for column in columns:
            yield from _of_turns(column, rows)
    question, answer = _one_of(columns, _QUESTIONS, rows), _one_of(columns, _ANSWERS, rows)
    if question is None:
        return
    prompt = _prompt(question, columns, rows)
    if prompt is None:
        return
    if kind == "pairs":
        chosen, rejected = _one_of(columns, _CHOSEN, rows), _one_of(columns, _REJECTED, rows)
        if chosen and rejected:
            yield prompt | {"chosen": chosen, "rejected": rejected}, {}
        return
    if answer is None:
        return
    mapped = prompt | {"completion": _answer(answer, columns, rows)}
    if kind == "rows":
        yield mapped, {}
        return
    for column in columns:
        values = [row.values.get(column) for row in rows]
        if any(isinstance(value, bool) for value in values) and all(isinstance(v, bool | None) for v in values):
            yield mapped | {"label": column}, {}


def _left_out(source: Source, rows: Sequence[Row], mapped: Mapped | str, roles: dict[str, str], kind: str) -> Any:
    """The columns that the mapping leaves out; None where it cannot read the rows, or leaves out what matters."""
    columns = Columns.model_validate({"file": mapped} if isinstance(mapped, str) else mapped)
    update: dict[str, Any] = {"columns": columns, "format": None}
    tried = source.model_copy(update=update | ({"roles": roles} if roles else {}))
    try:
        form = _format_of(kind)(tried, list(rows))
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


def _of_turns(column: str, rows: Sequence[Row]) -> Iterator[Try]:
    """A column of turns under another name, with its keys and what its roles mean."""
    lists = [value for row in rows if isinstance(value := row.values.get(column), list) and value]
    turns = [turn for value in lists for turn in value]
    if not turns or column in _TURNS or not all(isinstance(turn, dict) for turn in turns):
        return
    role = next((key for key in _ROLE_KEYS if all(isinstance(turn.get(key), str) for turn in turns)), None)
    held = [key for key in _TEXT_KEYS if key != role and any(turn.get(key) for turn in turns)]
    if role is None or not held:
        return
    said = list(dict.fromkeys(turn[role] for turn in turns))
    if len(said) > _MOST_ROLES + len(ROLES):
        return
    roles = _meanings(said)
    if roles is not None:
        yield {"turns": column, "role": role, "content": held[0]} | _beside(rows), roles


def _meanings(said: list[str]) -> dict[str, str] | None:
    """What unknown roles mean: who is one of two and asks, or speaks first, is the user; None where that cannot be told."""
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


def _prompt(question: str, columns: list[str], rows: Sequence[Row]) -> Mapped | None:
    """The question, with what belongs to it; None where that is no text."""
    before, after = "", ""
    for name in columns:
        values = [row.values.get(name) for row in rows]
        some = [value for value in values if value not in (None, "", [], {})]
        if name == question or not some or not part_of_question(name):
            continue
        if name.lower() in (*MEDIA, *_TURNS):
            return None
        if name.lower() in _SYSTEM or name.lower() in _TOOLS:
            continue
        first = name.lower() in _BEFORE
        text = _written(name, some, first)
        if text is None:
            return None
        if len(some) < len(rows):
            text = f"{{% if {_ref(name)} is defined and {_ref(name)} %}}{text}{{% endif %}}"
        before, after = (before + text, after) if first else (before, after + text)
    own = f"{{{{ {_ref(question)} }}}}"
    return {"prompt": before + own + after if before or after else question} | _beside(rows)


def _beside(rows: Sequence[Row]) -> Mapped:
    """The columns of the system text and of tools."""
    have = [name for row in rows for name, value in row.values.items() if value]
    found = {
        ours: [name for name in have if name.lower() in names]
        for ours, names in (("system", _SYSTEM), ("tools", _TOOLS))
    }
    return {ours: names[0] for ours, names in found.items() if names}


def _written(name: str, values: list[Any], before: bool) -> str | None:
    """A template that writes a column of texts, lists of texts, or texts by their letters; None for anything else."""
    ref, gap = _ref(name), '"\\n\\n"'
    if all(isinstance(value, str | int | float) for value in values):
        if before:
            return f"{{{{ {ref} ~ {gap} }}}}"
        label = f"{name}. " if len(name) == 1 else ""
        return f'{{{{ "\\n{label}" ~ {ref} }}}}'
    if all(isinstance(value, list) and all(isinstance(item, str | int | float) for item in value) for value in values):
        if before:
            return f"{{{{ {ref} | join({gap}) ~ {gap} }}}}"
        line = '{{ "\\n" ~ "ABCDEFGHIJ"[loop.index0] ~ ". " ~ option }}'
        return f"{{% for option in {ref} %}}{line}{{% endfor %}}"
    if not before and all(isinstance(v, dict) and all(isinstance(i, str) for i in v.values()) for v in values):
        return f'{{% for key, option in {ref}.items() %}}{{{{ "\\n" ~ key ~ ". " ~ option }}}}{{% endfor %}}'
    return None


def _answer(answer: str, columns: list[str], rows: Sequence[Row]) -> str:
    """The answer's column; where it is a number and the options a list, the option of that number."""
    options = [name for name in columns if name.lower() in ("options", "choices")]
    numbers = all(type(row.values.get(answer)) is int for row in rows)
    if len(options) == 1 and numbers and all(isinstance(row.values.get(options[0]), list) for row in rows):
        return f"{{{{ {_ref(options[0])}[{_ref(answer)}] }}}}"
    texts = all(isinstance(row.values.get(answer), str | None) for row in rows)
    return answer if texts else f"{{{{ {_ref(answer)} }}}}"  # a template writes numbers as text


def _ref(name: str) -> str:
    """A column in a template."""
    return name if _WORD.fullmatch(name) else f"row[{name!r}]"


def _flow(mapping: Mapping[str, str]) -> str:
    """A mapping as YAML writes it on one line."""
    return "{" + ", ".join(f"{_scalar(key)}: {_scalar(value)}" for key, value in mapping.items()) + "}"


def _scalar(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS:
        return text
    return "'" + text.replace("'", "''") + "'"
