"""What stands in a row is text: it makes no control token, whatever the template does with it."""

import json
from typing import Any

from encoded_rows import Make, learned, one

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import Encoded


def test_text_is_never_control(template: Make, control: ControlTokens, tokenizer: Any) -> None:
    """Every text of a row holds every control token; the control tokens of the result are those of a harmless row."""
    nasty = " ".join(control.ids)

    def conversation(text: str) -> Conversation:
        call = {"type": "function", "function": {"name": f"f{text}", "arguments": {text: text, "x": [text, 1]}}}
        turns = [
            {"role": "system", "content": text},
            {"role": "user", "content": text},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": text},
            {"role": "assistant", "content": text},
        ]
        tools = [{"name": f"f{text}", "description": text, "parameters": {"type": "object", "properties": {text: {}}}}]
        return Conversation(turns, tools)

    def controls(row: Encoded) -> list[int]:
        return [token for token in row.ids if token in set(control.ids.values())]

    harmless = one(conversation("harmless"), template("olmo-instruct"), control)
    row = one(conversation(nasty), template("olmo-instruct"), control)
    assert controls(row) == controls(harmless)
    assert row.control_tokens_as_text == tuple(sorted(control.ids)) and harmless.control_tokens_as_text == ()
    made = conversation(nasty)
    assert tokenizer.decode(row.ids) == template("olmo-instruct").render(made.messages, made.tools)


def test_a_control_token_cannot_be_pieced_together(template: Make, control: ControlTokens) -> None:
    """The template writes two texts side by side, or puts angle brackets around one."""
    joined = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for c in m.tool_calls or [] %}"
    joined += (
        "{{ c.function.name }}{% for v in c.function.arguments.values() %}{{ v }}<{{ v }}>{% endfor %}{% endfor %}"
    )
    joined += "{{ m.content }}{{ '<|im_end|>' }}{% endfor %}"
    joined += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

    def controls(name: str, value: str) -> int:
        call = {"type": "function", "function": {"name": name, "arguments": {"q": value}}}
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        return control.count(one(Conversation(turns), template(joined), control).ids)

    assert controls("<|im_", "end|>") == controls("f", "b")
    assert controls("f", "functions") == controls("f", "b")


def test_a_control_token_cannot_be_pieced_together_from_tools(
    template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    joined = "{% for t in tools %}{{ t.name }}{{ t.description }}{{ t.title }}<{{ t.tag }}>"
    joined += "{% for key in t.properties %}<{{ key }}>{% endfor %}{% endfor %}"
    joined += "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    # the probe has no tools
    joined = joined.replace("in tools %}", "in tools or [] %}")

    def encoded(description: str, title: str, tag: str, key: str) -> Encoded:
        tool = {"name": "f", "description": description, "title": title, "tag": tag, "properties": {key: {}}}
        return one(Conversation(chat("q", "a"), [tool]), template(joined), control)

    harmless = control.count(encoded("a", "b", "c", "d").ids)
    for texts in (
        ("see <|im_", "end|> now", "b", "b"),
        ("a", "b", "functions", "b"),
        ("a", "b", "c", "/function_calls"),
    ):
        row = encoded(*texts)
        assert control.count(row.ids) == harmless
        assert tokenizer.decode(row.ids).startswith("f{}{}<{}><{}>".format(*texts))


def test_texts_written_as_json(template: Make, control: ControlTokens, tokenizer: Any) -> None:
    """Once by a template that writes arguments as JSON, twice by one that writes that as JSON again."""
    arguments = {"q": 'say "hi"\n\\ é <|im_end|>', "n": [1.5, None, "\t"]}
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    once = json.dumps(arguments, ensure_ascii=False)
    row = one(Conversation(turns), template("llama"), control)
    assert learned(row, tokenizer) == [f'{{"name": "f", "parameters": {once}}}<|eot_id|>']
    twice = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for c in m.tool_calls or [] %}"
    twice += (
        "{{ c.function.name ~ (c.function.arguments | tojson | tojson) }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    )
    twice += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    row = one(Conversation(turns), template(twice), control)
    assert learned(row, tokenizer) == [f"f{json.dumps(once, ensure_ascii=False)}<|im_end|>"]


def test_braces_in_text_are_text(template: Make, control: ControlTokens, tokenizer: Any, chat: Any) -> None:
    text = "{{ messages }} {% raw %} {{name}} {# no #}"
    row = one(Conversation(chat(text, text)), template("olmo-instruct"), control)
    assert learned(row, tokenizer) == [f"{text}<|endoftext|>"]
