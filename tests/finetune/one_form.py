"""One row as its form reads it, and the turns of one."""

from typing import Any

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.row_forms import recognise
from hybrid_ft.finetune.data.sources.rows import Row

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def read(values: dict[str, Any], wanted: str | None = None) -> Conversation:
    form = recognise([Row(1, values)], wanted)
    assert form is not None
    return form.convert(values)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def said(speaker: str, text: str, **more: Any) -> dict[str, Any]:
    return {"from": speaker, "value": text, **more}


def parts(*texts: str, **mark: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} | mark for text in texts]
