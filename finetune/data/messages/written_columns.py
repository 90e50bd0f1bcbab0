"""Templates of an advised mapping, for options, passages and answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hybrid_ft.finetune.data.sources.rows import Row

ANSWERS = ("answer", "response", "output", "completion", "solution", "reply", "target", "assistant", "output_text")
_ANSWERS_INSIDE = (*ANSWERS, "answers", "answers_spans", "targets", "outputs")
"""Columns that may hold an answer in a list or an object."""
KEYS_OF_ANSWER = frozenset(
    [
        *("label", "labels", "correct", "correct_answer", "correct_idx", "correct_index", "gold", "answer_idx"),
        *("answer_index", "answer_id", "answerkey", "answer_key", "target_idx", "gold_index", "correct_choice"),
    ]
)
"""Columns that say which of several answers is the right one: those are options then."""
_TEXTS = (
    *("text", "content", "passage", "page_content", "paragraph_text", "paragraph", "chunk", "snippet", "body"),
    *("contents", "document", "option", "value", "choice", "answer", "sentences", "spans"),
)
_HEADS = ("title", "heading", "label", "key", "letter", "marker")
_OF_NO_USE = frozenset(["id", "_id", "doc_id", "docid", "pid", "url", "source", "link", "uid", "uuid", "score", "date"])
"""Keys of a passage that are not what it says."""
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_GAP = '"\\n\\n"'
_UNANSWERED = "unanswerable"


def ref(name: str) -> str:
    """A column in a template."""
    return name if _WORD.fullmatch(name) else f"row[{name!r}]"


def key_of(where: str, key: str) -> str:
    """A key of an object in a template; what every object has, ``items`` and the like, is not taken for one."""
    return f"{where}.{key}" if _WORD.fullmatch(key) and not hasattr(dict, key) else f"{where}[{key!r}]"


def written(name: str, where: str, values: list[Any], before: bool) -> str | None:
    """A template that writes a column, which ``where`` is in it, of texts, of lists of texts or of objects
    that hold them, or of texts by their letters; None for anything else. ``before``: it stands before the
    question, and not behind."""
    if all(isinstance(value, str | int | float) for value in values):
        if before:
            return f"{{{{ {where} ~ {_GAP} }}}}"
        label = f"{name}. " if len(name) == 1 else ""
        return f'{{{{ "\\n{label}" ~ {where} }}}}'
    if all(isinstance(value, list) and all(isinstance(item, str | int | float) for item in value) for value in values):
        if before:
            return f"{{{{ {where} | join({_GAP}) ~ {_GAP} }}}}"
        line = '{{ "\\n" ~ "ABCDEFGHIJ"[loop.index0] ~ ". " ~ option }}'
        return f"{{% for option in {where} %}}{line}{{% endfor %}}"
    if all(isinstance(value, list) and value and all(isinstance(item, dict) for item in value) for value in values):
        return _of_objects(where, [item for value in values for item in value], before)
    if all(isinstance(value, dict) for value in values):
        if all(isinstance(item, list) for value in values for item in value.values()):
            return _of_columns(where, values, before)
        if not before and all(isinstance(item, str) for value in values for item in value.values()):
            return f'{{% for key, option in {where}.items() %}}{{{{ "\\n" ~ key ~ ". " ~ option }}}}{{% endfor %}}'
    return None


def _of_objects(where: str, items: list[dict[str, Any]], before: bool) -> str | None:
    """Objects of a text and perhaps a title or a letter."""
    keys = {key for item in items for key, value in item.items() if isinstance(value, str | list) and value}
    text, head = _one(keys, _TEXTS), _one(keys, _HEADS)
    if text is None or not all(isinstance(item.get(text), str) for item in items):
        return None
    if keys - {text, head, *_OF_NO_USE} or (head and not all(isinstance(item.get(head), str) for item in items)):
        return None
    return _loop(where, key_of("part", text), head and key_of("part", head), before)


def _of_columns(where: str, values: list[dict[str, Any]], before: bool) -> str | None:
    """An object of lists as long as each other, as tables write a list of objects."""
    keys = {key for value in values for key, inner in value.items() if inner}
    text, head = _one(keys, _TEXTS), _one(keys, _HEADS)
    if text is None or keys - {text, head}:
        return None
    of_text = [item for value in values for item in value.get(text) or ()]
    lists = bool(of_text) and all(isinstance(item, list) for item in of_text)
    if not lists and not all(isinstance(item, str) for item in of_text):
        return None
    if head and any(len(value.get(head) or ()) != len(value.get(text) or ()) for value in values):
        return None
    part = 'part | join(" ")' if lists else "part"
    return _loop(key_of(where, text), part, head and f"{key_of(where, head)}[loop.index0]", before)


def _loop(over: str, part: str, head: str | None, before: bool) -> str:
    part = f"({part})" if " " in part else part
    if before:
        inner = f'{head} ~ "\\n" ~ {part} ~ {_GAP}' if head else f"{part} ~ {_GAP}"
    else:
        mark = head or '"ABCDEFGHIJ"[loop.index0]'
        inner = f'"\\n" ~ {mark} ~ ". " ~ {part}'
    return f"{{% for part in {over} %}}{{{{ {inner} }}}}{{% endfor %}}"


def answer_inside(columns: list[str], rows: Sequence[Row]) -> str | None:
    """A template that writes the answer that a column holds in a list or an object, the first where there are several;
    None where there is none, or where it may be options."""
    have = {name for row in rows for name, value in row.values.items() if value not in (None, "", [], {})}
    found = [name for name in columns if name in have and name.lower() in _ANSWERS_INSIDE]
    if len(found) != 1 or any(name.lower() in KEYS_OF_ANSWER for name in have):
        return None
    name = found[0]
    values = [value for row in rows if (value := row.values.get(name)) is not None]
    where = ref(name)
    if all(isinstance(value, dict) for value in values):
        keys = {key for value in values for key, inner in value.items() if inner}
        key = _one(keys, _TEXTS)
        if key is None:
            return None
        values, where = [value.get(key) for value in values], key_of(where, key)
    if values and all(isinstance(value, str) for value in values):
        return f"{{{{ {where} }}}}"
    if not all(isinstance(value, list) for value in values):
        return None
    firsts, first = [value[0] for value in values if value], f"{where}[0]"
    if firsts and all(isinstance(one, dict) for one in firsts):
        key = _one({key for one in firsts for key, inner in one.items() if isinstance(inner, str)}, _TEXTS)
        if key is None:
            return None
        firsts, first = [one.get(key) for one in firsts], key_of(first, key)
    if not firsts or not all(isinstance(one, str) for one in firsts):
        return None
    if len(firsts) < len(values):
        return f'{{{{ {first} if {where} else "{_UNANSWERED}" }}}}'
    return f"{{{{ {first} }}}}"


def _one(keys: set[str], names: tuple[str, ...]) -> str | None:
    """The key of such a name, the likeliest first."""
    return next((key for name in names for key in keys if key.lower() == name), None)
