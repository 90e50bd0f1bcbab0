"""A row begins with the tokens that ask for its answer: whose truth is plain transformers' own
rendering of the prompt."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import Encoded, encode, encode_prompt
from hybrid_ft.finetune.data.tokens.reasoning import Thoughts
from hybrid_ft.finetune.data.tokens.template import ChatTemplate

Make = Callable[[str], ChatTemplate]
# as Qwen3.5's: a thought is opened by the prompt, and an answer without one begins with an empty thought
OPENED = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and "
    "loop.index0 > ns.last %}{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{{ '<think>\n\n</think>\n\n' if enable_thinking is defined and enable_thinking is false else '<think>\n' }}{% endif %}"
)
# as Nemotron's: a turn without a thought begins in both tags at once
BOTH_TAGS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n' if m.reasoning_content else '<think></think>' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}"
    "{% endif %}"
)


def one(turns: list[dict[str, Any]], template: ChatTemplate, control: ControlTokens, **thoughts: Any) -> Encoded:
    (row,) = encode([Conversation(turns)], template, control, Thoughts(**thoughts))
    if isinstance(row, BadRow):
        raise row
    return row


def learned(row: Encoded, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(row.ids[first : last + 1]) for first, last in row.turns]


def asked_ids(template: ChatTemplate, tokenizer: Any, turns: list[dict[str, Any]], **more: Any) -> list[int]:
    """What plain transformers asks with."""
    ids: list[int] = tokenizer.apply_chat_template(
        turns, chat_template=template.text, add_generation_prompt=True, return_dict=False, **template.arguments, **more
    )
    return ids


def begins_as_asked(row: Encoded, asked: list[int]) -> bool:
    assert row.prompt_ids == asked
    return row.ids[: len(asked)] == asked


def test_a_thought_that_the_prompt_opens_is_not_learned(
    template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    made = template("opened thought")
    row = one(chat("Hi", "<think>\nfox</think>dog"), made, control)
    assert begins_as_asked(row, asked_ids(made, tokenizer, chat("Hi")))
    assert learned(row, tokenizer) == ["\nfox</think>dog<|im_end|>"]
    # a control token of this tokenizer in the prompt, text in the row: what is asked counts
    assert row.ids.count(control.ids["<think>"]) == 1
    assert row.happened() == {"line_ends_split_from_header": True}
    assert row.answer == "\nfox</think>dog"


def test_an_answer_without_the_thought_that_is_opened_is_counted(
    template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    made = template("opened thought")
    row = one(chat("Hi", "dog"), made, control)
    assert not begins_as_asked(row, asked_ids(made, tokenizer, chat("Hi")))
    assert row.happened() == {"not_asked_opening": True} and row.answer == "dog"
    assert learned(row, tokenizer) == ["dog<|im_end|>"]


def test_an_empty_thought_of_the_template_goes_on_from_the_opened_one(
    template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    """The prompt ends in one line end, the row has two: a token of this tokenizer."""
    made = template(OPENED)
    row = one(chat("Hi", "dog"), made, control)
    assert begins_as_asked(row, asked_ids(made, tokenizer, chat("Hi")))
    assert learned(row, tokenizer) == ["\n</think>\n\ndog<|im_end|>"]
    assert row.happened() == {"empty_thoughts_trained": 1, "line_ends_split_from_header": True}


def test_an_empty_thought_of_the_template_is_not_learned_where_the_recipe_says_so(
    template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    for text in (OPENED, BOTH_TAGS, "thinking"):
        made = template(text)
        row = one(chat("Hi", "dog"), made, control, train_empty=False)
        assert learned(row, tokenizer) == ["dog<|im_end|>"]
        assert row.counts["empty_thoughts_not_trained"] == 1
        assert row.ids[row.turns[0][0] - 1] != row.ids[row.turns[0][0]]
        thinking = chat("Hi", "dog")
        thinking[1]["reasoning_content"] = "fox"
        row = one(thinking, made, control, train_empty=False)
        assert "fox" in learned(row, tokenizer)[0] and "empty_thoughts_not_trained" not in row.counts


def test_an_empty_thought_in_the_prompt_is_no_ones_to_learn(
    template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    made = template(OPENED).variant({"enable_thinking": False})
    row = one(chat("Hi", "dog"), made, control)
    assert begins_as_asked(row, asked_ids(made, tokenizer, chat("Hi")))
    # by GPT-2's rule two line ends are one token, and two tokens before a word
    assert learned(row, tokenizer) == ["dog<|im_end|>"] and row.happened() == {"merges_split_from_prompt": True}


def test_a_thought_of_the_row_is_learned_behind_what_opens_it(
    template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    turns = chat("Hi", "dog")
    turns[1]["reasoning_content"] = "fox"
    for text in (OPENED, BOTH_TAGS):
        made = template(text)
        row = one(turns, made, control)
        assert begins_as_asked(row, asked_ids(made, tokenizer, turns[:1]))
        assert learned(row, tokenizer)[0].startswith("fox\n</think>") and row.happened() == {}


def test_earlier_answers_that_are_written_without_a_thought_are_counted(
    template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    turns = chat("Hi", "fox", "And?", "dog")
    for index in (1, 3):
        turns[index]["reasoning_content"] = "lazy"
    row = one(turns, template(OPENED), control)
    assert learned(row, tokenizer) == ["fox<|im_end|>", "lazy\n</think>\n\ndog<|im_end|>"]
    assert begins_as_asked(row, asked_ids(template(OPENED), tokenizer, turns[:3]))
    assert row.happened() == {"reasoning_not_shown": True, "not_asked_opening": True}


def test_a_template_that_moves_earlier_text_is_found_out(template: Make, control: ControlTokens, chat: Any) -> None:
    turns = [{"role": "system", "content": "Be kind."}, *chat("Hi", "fox", "And?", "dog")]
    assert one(turns, template("system last"), control).happened() == {"not_asked_turns": True}
    assert one(turns[:3], template("system last"), control).happened() == {}


def test_the_same_tokens_whatever_the_kind_of_tokenizer(
    tokenizers: dict[str, Any], templates: dict[str, str], chat: Any
) -> None:
    """A tokenizer that puts a space before a text cannot encode an answer alone: the row stays whole then."""
    found = {}
    for kind, tokenizer in tokenizers.items():
        made = ChatTemplate(templates["opened thought"], "test", tokenizer, control := ControlTokens(tokenizer))
        row = one(chat("the fox", "<think>\nfox </think> dog"), made, control)
        assert tokenizer.decode(row.prompt_ids) == tokenizer.decode(asked_ids(made, tokenizer, chat("the fox")))
        found[kind] = row.ids[: len(row.prompt_ids)] == row.prompt_ids
        assert found[kind] != ("not_asked_merge" in row.counts)
    assert found["byte-level"]


def test_any_row_of_any_template_begins_as_asked_or_says_why(
    template: Make, templates: dict[str, str], control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    piece = st.sampled_from(["a", "\n", " ", "\n\n", "<think>", "</think>", "fox", "<think>\n"])
    text = st.lists(piece, min_size=1, max_size=5).map("".join).map(lambda text: text if text.strip() else text + "x")
    names = st.sampled_from([*templates, OPENED, BOTH_TAGS])

    @settings(max_examples=40)
    @given(names, st.lists(text, min_size=1, max_size=2), text)
    def check(name: str, questions: list[str], answer: str) -> None:
        turns = chat(*(part for question in questions for part in (question, "ok")))[:-1]
        made = template(name)
        (row,) = encode([Conversation([*turns, {"role": "assistant", "content": answer}])], made, control)
        if isinstance(row, BadRow):  # an answer that a template takes apart in a way of its own
            assert "changes this row's text" in str(row) or row.kind == "empty answer"
            return
        # no control token that plain transformers would see in a text
        if not any("think>" in question for question in questions):
            assert row.prompt_ids == asked_ids(made, tokenizer, turns)
        assert row.prompt_ids == encode_prompt(Conversation(turns), made, control)
        goes_on = row.ids[: len(row.prompt_ids)] == row.prompt_ids
        assert goes_on or any(kind.startswith("not_asked") for kind in row.counts)

    check()


def test_templates_of_many_models_ask_as_they_train(tokenizers: dict[str, Any], chat: Any) -> None:
    """TRL's own; rows with a thought, where a template has a place for one, and rows without."""
    tokenizer, checked = tokenizers["byte-level"], 0
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
        if path.stem not in ("qwen3", "qwen3_5_think", "qwen3_8", "nemotron_3_nano", "gptoss", "lfm2_2_5", "llama3_2"):
            continue
        own = copy.deepcopy(tokenizer)
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"<\|\w+\|>", text)
        own.add_tokens([AddedToken(name, normalized=False) for name in dict.fromkeys(names)])
        control = ControlTokens(own)
        try:
            made = ChatTemplate(text, path.stem, own, control)
        except InputError:
            continue
        turns = chat("the fox", "<think>\nlazy\n</think>\n\ndog")
        row = one(turns, made, control)
        field = [turns[0], {"role": "assistant", "content": "dog", "reasoning_content": "lazy"}]
        if made.habits.field:
            assert row.ids == one(field, made, control).ids, path.stem
        assert begins_as_asked(row, asked_ids(made, own, turns[:1])), path.stem
        checked += 1
    assert checked >= 5
