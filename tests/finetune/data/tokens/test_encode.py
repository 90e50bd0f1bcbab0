"""Which tokens of a conversation are learned: the answers', with the one that ends each."""

from typing import Any

import pytest
from encoded_rows import APART, WEATHER, Make, learned, one
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.template import ChatTemplate

SPEAKING = ["chatml", "chatml, default system", "llama", "gemma", "mistral", "opened thought", "marked", "system last"]


END = {"llama": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}


@pytest.mark.parametrize("name", SPEAKING)
def test_every_turn_is_learned_with_its_end(
    name: str, template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    end = END.get(name, "<|im_end|>")
    row = one(Conversation(chat("Hi there", "Hello fox", "And 12?", "It is 42.")), template(name), control)
    assert learned(row, tokenizer) == [f"Hello fox{end}", f"It is 42.{end}"]
    assert row.labels().count(-100) == len(row.ids) - sum(last - first + 1 for first, last in row.turns)
    assert all(label in (-100, token) for label, token in zip(row.labels(), row.ids, strict=True))
    assert row.answer == "It is 42."
    assert tokenizer.decode(row.prompt_ids) == template(name).render(chat("Hi there", "Hello fox", "And 12?"), ask=True)


@pytest.mark.parametrize("name", [*SPEAKING, "olmo-instruct", "thinking"])
def test_tokens_are_those_of_the_rendered_text(
    name: str, template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    made = template(name)

    # no "<", so that no control token comes about
    @settings(max_examples=20)
    @given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1), min_size=2, max_size=6))
    def check(texts: list[str]) -> None:
        turns = chat(*(text if text.strip() else f"{text}x" for text in texts[: len(texts) // 2 * 2]))
        row = one(Conversation(turns), made, control)
        text, asked = made.render(turns), made.render(turns[:-1], ask=True)
        assert row.ids == tokenizer(text, add_special_tokens=False).input_ids or APART & row.counts.keys()
        assert tokenizer.decode(row.ids) == text
        assert row.prompt_ids == tokenizer(asked, add_special_tokens=False).input_ids
        # a model asked with <think> is never asked for these answers
        assert row.ids[: len(row.prompt_ids)] == row.prompt_ids or name == "opened thought"

    check()


@pytest.mark.parametrize("name", ["chatml", "llama", "gemma", "mistral", "olmo-instruct"])
def test_learned_text_is_the_answers_own(
    name: str, template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    """Random texts, white space and control tokens among them; where a template strips, so does the truth."""
    strips = name in ("llama", "gemma")
    ends = ("<|im_end|>", "<|endoftext|>") if name == "olmo-instruct" else (END.get(name, "<|im_end|>"),) * 2
    word = st.sampled_from(
        ["a", "é", " ", "\n", "<|im_end|>", "<|eot_id|>", "</s>", "<end_of_turn>", "{{x}}", "<think>"]
    )

    @settings(max_examples=50)
    @given(st.lists(st.lists(word, min_size=1).map("".join), min_size=2, max_size=6))
    def check(texts: list[str]) -> None:
        texts = [text if text.strip() else f"{text}x" for text in texts[: len(texts) // 2 * 2]]
        row = one(Conversation(chat(*texts)), template(name), control)
        answers = [text.strip() if strips else text for text in texts[1::2]]
        expected = [answer + ends[index == len(answers) - 1] for index, answer in enumerate(answers)]
        for (first, last), answer in zip(row.turns, expected, strict=True):
            # a line end of the header and one of the answer may share a token, which is not learned
            assert answer.endswith(tokenizer.decode(row.ids[first : last + 1]))
            missing = len(answer) - len(tokenizer.decode(row.ids[first : last + 1]))
            assert missing == 0 or answer[:missing].isspace()
        assert tokenizer.decode(row.ids) == template(name).render(chat(*texts))

    check()


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "unigram"])
@pytest.mark.parametrize("name", ["chatml", "llama", "gemma", "mistral"])
def test_learned_tokens_by_the_tokenizers_own_offsets(
    kind: str, name: str, tokenizers: dict[str, Any], templates: dict[str, str], chat: Any
) -> None:
    """With tokenizers that join a space to the first word or drop one: tokens whose characters are the answer's."""
    tokenizer, control = tokenizers[kind], ControlTokens(tokenizers[kind])
    turns = chat("What is 12", "the fox jumps", "  over\n", "lazy dog. 42")
    template = ChatTemplate(templates[name], "test", tokenizer, control)
    row = one(Conversation(turns), template, control)
    if APART & row.counts.keys():
        # by GPT-2's rule two line ends are one token, and two tokens before a word
        assert (kind, name) == ("byte-level", "llama")
        assert learned(row, tokenizer) == ["the fox jumps<|eot_id|>", "lazy dog. 42<|eot_id|>"]
        return
    text = template.render(turns)
    plain = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert row.ids == plain.input_ids
    end = END.get(name, "<|im_end|>")
    spans = [(text.index(f"{answer}{end}"), len(f"{answer}{end}")) for answer in ("the fox jumps", "lazy dog. 42")]
    wanted = [
        token if any(begin <= low and high <= begin + size for begin, size in spans) else -100
        for token, (low, high) in zip(plain.input_ids, plain.offset_mapping, strict=True)
    ]
    assert row.labels() == wanted


def test_a_token_that_header_and_answer_would_share_is_two(
    template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    ids = tokenizer("\n\n", add_special_tokens=False).input_ids
    assert len(ids) == 1, "the tokenizer has a token of two line ends, or this test shows nothing"
    # three line ends in a row: the header's and the answer's first are one token, the answer's second is another
    row = one(Conversation(chat("Hi", "\n\nfox")), template("chatml"), control)
    assert tokenizer.decode(row.ids) == template("chatml").render(chat("Hi", "\n\nfox"))
    assert learned(row, tokenizer) == ["\n\nfox<|im_end|>"]
    asked = template("chatml").render(chat("Hi"), ask=True)
    assert row.prompt_ids == tokenizer(asked, add_special_tokens=False).input_ids
    assert row.ids[: len(row.prompt_ids)] == row.prompt_ids
    assert row.happened() == {"line_ends_split_from_header": True}


def test_a_token_that_is_shared_in_an_earlier_answer_is_not_learned(
    template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    """In the prompt for the last answer it is one token, as in any other."""
    turns = chat("Hi", "\n\nfox", "And?", "dog")
    row = one(Conversation(turns), template("chatml"), control)
    assert row.ids == tokenizer(template("chatml").render(turns), add_special_tokens=False).input_ids
    assert learned(row, tokenizer) == ["\nfox<|im_end|>", "dog<|im_end|>"]
    assert row.ids[: len(row.prompt_ids)] == row.prompt_ids
    assert row.happened() == {"not_asked_merge": True}


def test_tool_calls_are_learned_whole(template: Make, control: ControlTokens, tokenizer: Any) -> None:
    turns = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [WEATHER, WEATHER]},
        {"role": "tool", "content": '{"sun": true}'},
        {"role": "assistant", "content": "Sunny."},
    ]
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    row = one(Conversation(turns, tools), template("olmo-instruct"), control)
    call = 'get_weather(city="Paris", days=2)'
    assert learned(row, tokenizer) == [
        f"<function_calls>{call}\n{call}</function_calls><|im_end|>",
        "Sunny.<|endoftext|>",
    ]
    first, last = row.turns[0]
    assert row.ids[first : last + 1].count(control.ids["<function_calls>"]) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", '{"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}<|eot_id|>'),
        # Mistral's turns have no header of their own: the calls begin where a text would
        ("mistral", '[TOOL_CALLS]get_weather {"city": "Paris", "days": 2}</s>'),
    ],
)
def test_tool_calls_of_other_templates(
    name: str, expected: str, template: Make, control: ControlTokens, tokenizer: Any
) -> None:
    turns = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "", "tool_calls": [WEATHER]}]
    turns += [{"role": "tool", "content": "sun"}, {"role": "assistant", "content": "Sunny."}]
    row = one(Conversation(turns), template(name), control)
    assert learned(row, tokenizer)[0] == expected
    assert learned(row, tokenizer)[1].startswith("Sunny.")


def test_reasoning_is_learned_where_the_template_shows_it(
    template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    turns = chat("Hi", "fox", "And?", "dog")
    turns[1]["reasoning_content"] = "first thought"
    row = one(Conversation(turns), template("thinking"), control)
    end = "<|im_end|>"
    assert learned(row, tokenizer) == [
        f"<think>\nfirst thought\n</think>\n\nfox{end}",
        f"<think>\n\n</think>\n\ndog{end}",
    ]
    assert "reasoning_not_shown" not in row.counts
    inline = chat("Hi", "<think>\nfirst thought\n</think>\n\nfox", "And?", "dog")
    assert one(Conversation(inline), template("thinking"), control).ids == row.ids
    assert one(Conversation(turns), template("chatml"), control).counts == {"reasoning_not_shown": 1}


def test_a_header_inside_the_templates_own_marks_is_not_learned(
    template: Make, control: ControlTokens, tokenizer: Any, chat: Any
) -> None:
    whole = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ '<|im_start|>assistant\n' }}"
    whole += "{{ m.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}{{ '<|im_start|>' + m.role + '\n' }}"
    whole += "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    whole += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    row = one(Conversation(chat("Hi", "Hello fox")), template(whole), control)
    assert learned(row, tokenizer) == ["Hello fox<|im_end|>"]
