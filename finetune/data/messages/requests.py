"""Conversations inside objects: requests to a model, and its responses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybrid_ft.finetune.data.messages.column_paths import at
from hybrid_ft.finetune.data.sources.rows import Row

_ANSWERS = (
    *("choices.0.message.content", "output_text", "content.0.text", "generations.0.text", "message.content"),
    "content",
)
"""Where a response of the usual services and logs has its text."""
_CALLS = ("choices.0.message.tool_calls", "choices.0.message.function_call", "message.tool_calls", "tool_calls")
_BODIES = ("", "body.")
_MOST_CALLS = 64
_CUSTOM_ID = "custom_id"
_WHOLE_ROW = "{messages: [{role: user, content: ...}, {role: assistant, content: ...}]}"


def turns_inside(rows: Sequence[Row]) -> Iterator[tuple[dict[str, str], set[str]]]:
    """Mappings of conversations that lie in objects, and what is in those and is read by none of them."""
    for path, holder in _requests(rows):
        beside = {
            ours: f"{path}.{ours}"
            for ours in ("tools", "system")
            if any(at(row.values, f"{path}.{ours}") for row in rows)
        }
        left = {name for one in holder for name, value in one.items() if value and name not in (*beside, "messages")}
        if _whole(holder):
            yield {"turns": f"{path}.messages"} | beside, left
        elif (answer := _answer(rows)) is not None:
            yield {"prompt": f"{path}.messages", "completion": answer} | beside, left


def no_answers(rows: Sequence[Row]) -> str:
    """What to do with requests alone, or with answers alone; "" for other rows."""
    by = f", by their {_CUSTOM_ID}" if _CUSTOM_ID in rows[0].values else ""
    if any(not _whole(holder) for _, holder in _requests(rows)):
        return f"rows are requests without their answers; write each with the answer to it{by}, as {_WHOLE_ROW}"
    if _CUSTOM_ID in rows[0].values and not any(_requests(rows)) and _answer(rows) is not None:
        return f"rows are answers without what they answer; write each behind the messages of its request{by}, as {_WHOLE_ROW}"
    return ""


def _requests(rows: Sequence[Row]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Paths of objects that hold messages, in every row, and these objects."""
    for column, value in rows[0].values.items():
        for path in (column, f"{column}.body") if isinstance(value, Mapping) else ():
            holder = [at(row.values, path) for row in rows]
            if all(isinstance(one, Mapping) and _are_turns(one.get("messages")) for one in holder):
                yield path, holder


def _are_turns(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(turn, Mapping) and "role" in turn for turn in value)
    )


def _whole(holder: Sequence[Mapping[str, Any]]) -> bool:
    return all(one["messages"][-1]["role"] == "assistant" for one in holder)


def _answer(rows: Sequence[Row]) -> str | None:
    """The path of a response's text in every row; None where there is none, or where it calls tools."""
    for column, value in rows[0].values.items():
        for body in _BODIES if isinstance(value, Mapping) else ():
            if any(at(row.values, f"{column}.{body}{calls}") for row in rows[:_MOST_CALLS] for calls in _CALLS):
                return None
            for path in (f"{column}.{body}{answer}" for answer in _ANSWERS):
                if all(isinstance(at(row.values, path), str) for row in rows):
                    return path
    return None
