"""Reasoning, however it comes, goes where the recipe says: to the template, into the text, or out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import Encoded, encode
from hybrid_ft.finetune.data.tokens.reasoning import Habits, Thoughts, parted, placed
from hybrid_ft.finetune.data.tokens.template import ChatTemplate
from hybrid_ft.finetune.recipe.schema import changed

Make = Callable[[str], ChatTemplate]
PLAIN = Habits(None, "", False)
OPENING = Habits(None, "<think>", False)
KNOWS = Habits("reasoning_content", "", True)
CALL = {"type": "function", "function": {"name": "look", "arguments": {"q": "fox"}}}
# as DeepSeek's: it drops thoughts, and has no field for them
DROPS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def moved(content: str, habits: Habits, reasoning: str, **more: Any) -> tuple[dict[str, Any], dict[str, int]]:
    turns = [{"role": "user", "content": "</think>"}, {"role": "assistant", "content": content, **more}]
    made = placed(Conversation(turns), Thoughts(reasoning), habits)
    assert made.conversation.messages[0] == turns[0]
    return made.conversation.messages[1] | {"role": "assistant"}, made.happened


def said(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("<think>a</think>b", ("<think>", "a", "b")),
        ("\n<think>\na\n</think>\n\nb", ("\n<think>", "\na\n", "\n\nb")),
        ("a\n</think>b", ("", "a\n", "b")),
        ("<think>a</think>b<think>c</think>d", ("<think>", "a", "b<think>c</think>d")),
        ("b <think>a</think>", None),
        ("<think>a", None),
        ("a", None),
    ],
)
def test_a_thought_is_at_the_beginning_and_ends(content: str, parts: Any) -> None:
    assert parted(content) == parts


@pytest.mark.parametrize(
    ("message", "habits", "reasoning", "becomes", "happened"),
    [
        (said("b", reasoning_content="a"), KNOWS, "template", said("b", reasoning_content="a"), {}),
        (said("<think>\na\n</think>\n\nb"), KNOWS, "template", said("b", reasoning_content="a"), {}),
        (said("a\n</think>\nb"), KNOWS, "template", said("b", reasoning_content="a"), {"lone_think_end": 1}),
        (said("b", reasoning_content="a"), PLAIN, "template", said("b"), {"reasoning_not_shown": 1}),
        (said("b", reasoning_content=" "), PLAIN, "template", said("b"), {}),
        (said("<think>a</think>b"), PLAIN, "template", said("<think>a</think>b"), {}),
        (said("a</think>b"), OPENING, "template", said("<think>a</think>b"), {"lone_think_end": 1}),
        (said("a</think>b"), PLAIN, "template", said("a</think>b"), {"lone_think_end_kept": 1}),
        (said("b", reasoning_content="a\n"), PLAIN, "text", said("<think>\na\n</think>\n\nb"), {"reasoning_as_text": 1}),
        (said("<think>a</think>b"), KNOWS, "text", said("<think>a</think>b"), {"reasoning_as_text": 1}),
        (said("a</think>b"), PLAIN, "text", said("<think>\na</think>b"), {"reasoning_as_text": 1, "lone_think_end": 1}),
        (said("a</think>b"), OPENING, "text", said("<think>a</think>b"), {"reasoning_as_text": 1, "lone_think_end": 1}),
        (said("b", reasoning_content=""), PLAIN, "text", said("b"), {}),
        (said("b", reasoning_content="a"), KNOWS, "drop", said("b"), {"reasoning_dropped": 1}),
        (said("<think>a</think>\n\nb"), PLAIN, "drop", said("b"), {"reasoning_dropped": 1}),
        (said("a</think>b"), KNOWS, "drop", said("b"), {"reasoning_dropped": 1, "lone_think_end": 1}),
        (said("", reasoning_content="a", tool_calls=[CALL]), PLAIN, "drop", said("", tool_calls=[CALL]), {"reasoning_dropped": 1}),
        (said("<think>a</think>", tool_calls=[CALL]), KNOWS, "template", said("", reasoning_content="a", tool_calls=[CALL]), {}),
        (said("a"), KNOWS, "drop", said("a"), {}),
    ],
)  # fmt: skip
def test_where_reasoning_goes(
    message: dict[str, Any], habits: Habits, reasoning: str, becomes: dict[str, Any], happened: dict[str, int]
) -> None:
    asked = {"role": "user", "content": "<think>u</think>"}
    made = placed(Conversation([asked, message]), Thoughts(reasoning), habits)
    assert made.conversation.messages == [asked, becomes]
    assert made.happened == happened


def test_an_empty_thought_is_no_answer() -> None:
    for content in ("</think>", "<think>\n</think>\n"):
        with pytest.raises(BadRow, match="empty thought and nothing else"):
            placed(Conversation([said(content)]), Thoughts(), PLAIN)


def test_an_answer_of_nothing_but_reasoning_cannot_be_dropped_from() -> None:
    with pytest.raises(BadRow, match="nothing but reasoning") as bad:
        placed(Conversation([said("<think>a</think>\n")]), Thoughts("drop"), PLAIN)
    assert bad.value.kind == "empty answer" and "\n" not in str(bad.value)


def rows(turns: list[dict[str, Any]], template: ChatTemplate, control: ControlTokens, **thoughts: Any) -> Encoded:
    (row,) = encode([Conversation(turns)], template, control, Thoughts(**thoughts))
    assert isinstance(row, Encoded), row
    return row


def learned(row: Encoded, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(row.ids[first : last + 1]) for first, last in row.turns]


def test_tags_in_several_turns_are_the_field_in_several_turns(
    template: Make, control: ControlTokens, chat: Any
) -> None:
    """The template trims what it finds in tags in another way than what it finds in the field."""
    fields = chat("Hi", "fox", "And?", "dog")
    for index in (1, 3):
        fields[index]["reasoning_content"] = "lazy"
    wanted = rows(fields, template("thinking"), control)
    for tags in (
        "<think>\nlazy\n</think>\n\n",
        "<think>lazy</think>",
        "lazy\n</think>\n\n",
        "\n<think>\n\nlazy</think>\n",
    ):
        tagged = chat("Hi", f"{tags}fox", "And?", f"{tags}dog")
        row = rows(tagged, template("thinking"), control)
        assert row.ids == wanted.ids and row.turns == wanted.turns
        assert row.counts.get("lone_think_end", 0) == (0 if "<think>" in tags else 2)


def test_a_template_without_a_place_drops_what_it_drops_and_says_so(
    template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    for answer in ("<think>\nlazy\n</think>\n\nfox", "lazy</think>\n\nfox"):
        row = rows(chat("Hi", answer, "And?", answer), template(DROPS), control)
        assert [text.lstrip("\n") for text in learned(row, tokenizer)] == ["fox<|im_end|>"] * 2
        assert row.counts["reasoning_not_shown"] == 2


def test_written_tags_are_control_tokens_where_the_tokenizer_has_them(
    template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    turns = chat("</think>", "fox")
    turns[1]["reasoning_content"] = "lazy </think> dog"
    row = rows(turns, template("chatml"), control, reasoning="text")
    # the text of a row has no such token, in the question or in the thought
    assert learned(row, tokenizer) == ["<think>\nlazy </think> dog\n</think>\n\nfox<|im_end|>"]
    assert [row.ids.count(control.ids[tag]) for tag in ("<think>", "</think>")] == [1, 1]
    assert row.counts == {"reasoning_as_text": 1}


def test_thoughts_before_a_call(template: Make, control: ControlTokens, tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "q"}, said("", reasoning_content="I look.", tool_calls=[CALL])]
    row = rows(turns, template("olmo-instruct"), control, reasoning="text")
    (text,) = learned(row, tokenizer)
    assert text == '<think>\nI look.\n</think>\n\n<function_calls>look(q="fox")</function_calls><|endoftext|>'
    tagged = [turns[0], said("<think>\nI look.\n</think>\n\n", tool_calls=[CALL])]
    assert rows(tagged, template("olmo-instruct"), control, reasoning="text").ids == row.ids


def test_enable_thinking_is_no_field_of_a_message(template: Make, templates: dict[str, str]) -> None:
    gate = "{% if enable_thinking is defined and not enable_thinking %}{% set thinking = false %}{% endif %}"
    assert template(gate + templates["chatml"]).habits.field is None
    assert template("thinking").habits.field == "reasoning_content"


def test_the_recipe_decides_and_the_report_counts(
    write_rows: Callable[..., Path],
    recipe: Callable[..., Any],
    tokenizer: Any,
    templates: dict[str, str],
    tmp_path: Path,
) -> None:
    file = write_rows(
        [
            {"prompt": "a", "completion": "<think>\nb\n</think>\n\nc"},
            {"prompt": "a", "completion": "b\n</think>\n\nc"},
            {"prompt": "a", "completion": "c"},
        ]
    )
    (tmp_path / "t.jinja").write_text(templates["thinking"])
    found = {}
    for reasoning in ("template", "text", "drop"):
        wanted = recipe(file, reasoning=reasoning, train_empty_thoughts=False)
        wanted = changed(wanted, "model", chat_template=str(tmp_path / "t.jinja"), from_scratch=True)
        report = prepare(wanted, tokenizer).report
        counts = report.as_dict()["sources"][0]
        kinds = ("reasoning_dropped", "reasoning_as_text", "lone_think_end", "empty_thoughts_not_trained")
        found[reasoning] = [next(iter(counts[kind].values())) for kind in kinds]
        assert json.dumps(counts)
        lone = [line for line in report.warnings() if line.startswith("rows with a </think> that nothing opens")]
        assert len(lone) == 1 and lone[0].endswith(f": 1 ({file}:2)")
    # in the text it is the template that takes the tags apart again
    assert found == {"template": [0, 0, 1, 1], "text": [0, 2, 1, 1], "drop": [2, 0, 1, 3]}
