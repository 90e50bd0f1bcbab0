"""Calls of tools in an answer's text are counted where the chat template would write them itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.tokens.calls_as_text import calls_as_text
from hybrid_ft.finetune.recipe.schema import Dpo, changed

TEMPLATES = {True: "{{ messages[0].tool_calls }}", False: "{{ messages[0].content }}"}
CALL = '{"name": "look", "arguments": {"q": "fox"}}'


class Template:
    def __init__(self, text: str) -> None:
        self.text = text

    def mentions(self, field: str) -> bool:
        return field in self.text


@pytest.mark.parametrize(
    ("text", "is_call"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", True),
        (f"I look.\n<tool_call>{CALL}</tool_call>", True),
        ("<function_calls>\nlook(q='fox')\n</function_calls>", True),
        ("<tool_call>\n<function=look>\n<parameter=q>\nfox\n</parameter>\n</function>\n</tool_call>", True),
        ('<function=look>{"q": "fox"}</function>', True),
        ('<function_calls>\n<invoke name="look">\n</invoke>\n</function_calls>', True),
        (f"<|python_tag|>{CALL}", True),
        (f"[TOOL_CALLS] [{CALL}]", True),
        ("A call stands between <tool_call> and its end.", False),
        ("<tool_call></tool_call>", False),
        ("The function of <function> is a function.", False),
        ("1 < 2 and [1]", False),
        (CALL, False),
    ],
)
def test_what_is_a_call_in_a_text(text: str, is_call: bool) -> None:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    for writes_calls, source in TEMPLATES.items():
        template: Any = Template(source)
        assert calls_as_text(turns, (), template) == (is_call and writes_calls)
        assert calls_as_text(turns, (1,), template) == 0


def test_rows_with_calls_as_text_are_noted(
    recipe: Callable[..., Any], tokenizer: Any, write_rows: Callable[..., Path]
) -> None:
    answer = f"<tool_call>{CALL}</tool_call>"
    turns = [{"role": "user", "content": "fox"}, {"role": "assistant", "content": answer}]
    pair = {"prompt": "fox", "chosen": "dog", "rejected": answer}
    for rows, section, unit in (([{"messages": turns}] * 2, {}, "rows"), ([pair], {"dpo": {}}, "pairs")):
        file = write_rows(rows)
        wanted = changed(recipe(file), "model", chat_template="olmo-instruct", from_scratch=True)
        report = prepare(wanted.model_copy(update=dict.fromkeys(section, Dpo())), tokenizer).report
        (line,) = [line for line in report.warnings() if "calls of tools in an answer's text" in line]
        assert line.startswith(f"{unit} with calls") and f": {len(rows)} ({file}:1" in line
        assert "given as tool_calls: [{name: ..., arguments: {...}}]" in line
