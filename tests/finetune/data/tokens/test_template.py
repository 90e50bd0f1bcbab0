"""Which tokens are learned, whatever the template. The truth is each turn's own text with the token that ends it."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import trl
from encoded_rows import Make, learned, one
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import Encoded, encode
from hybrid_ft.finetune.data.tokens.template import ChatTemplate

SPEAKING = ["chatml", "chatml, default system", "llama", "gemma", "mistral", "opened thought", "marked", "system last"]
APART = {"line_ends_split_from_header", "merges_split_from_prompt"}
END = {"llama": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}
WEATHER = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}}


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
    @settings(max_examples=60, deadline=None)
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

    @settings(max_examples=150, deadline=None)
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


# Of the variants with marks, three are enough: their texts are those of the others.
TRL_TEMPLATES = [
    path
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    if not path.stem.endswith("_training") or path.stem in ("qwen3_training", "llama3_training", "gptoss_training")
]


def test_templates_of_many_models(tokenizers: dict[str, Any], chat: Any) -> None:
    """Those that TRL brings along, read where they are installed: each works as it must or is refused with a reason."""
    works, refused = [], []
    for path in TRL_TEMPLATES:
        text = path.read_text(encoding="utf-8")
        tokenizer = deepcopy(tokenizers["byte-level"])
        names = set(re.findall(r"<\|[^\s<>|]+\|>|<｜[^｜]+｜>|</?[A-Za-z_|]+>", text))
        tokenizer.add_tokens([AddedToken(name, normalized=False) for name in sorted(names)])
        if "<|im_end|>" in text:
            tokenizer.eos_token = "<|im_end|>"
        control = ControlTokens(tokenizer)
        try:
            template = ChatTemplate(text, path.stem, tokenizer, control)
        except InputError:
            refused.append(path.stem)
            continue
        turns = chat("Hi there", "Hello fox", "And 12?", "It is 42.")
        row = one(Conversation(turns), template, control)
        assert tokenizer.decode(row.ids) == template.render(turns), path.stem
        if not APART & row.counts.keys():
            assert row.ids == tokenizer(template.render(turns), add_special_tokens=False).input_ids, path.stem
        ends = {tokenizer.decode([end]) for end in template.eos_token_ids}
        for text, answer in zip(learned(row, tokenizer), ("Hello fox", "It is 42."), strict=True):
            before, _, end = text.partition(answer)
            # before an answer there may be an empty thought or a channel's name, never the turn's header
            assert end in ends and "assistant" not in before.lower() and len(before) < 40, (path.stem, text)
        works.append(path.stem)
    # templates for images take no plain text, and GLM ends no turn
    assert set(refused) <= {
        "glm4moe", "idefics3", "llava_next", "smolvlm", "qwen2_5_vl", "qwen3_vl",
    }  # fmt: skip
    assert len(works) > len(TRL_TEMPLATES) / 2


def test_the_templates_own_marks_decide(template: Make, control: ControlTokens, tokenizer: Any, chat: Any) -> None:
    last_only = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}"
    )
    last_only += "{% generation %}{{ m.content }}{{ '<|im_end|>' }}{% endgeneration %}{% else %}"
    last_only += "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    row = one(Conversation(chat("Hi", "Hello fox", "And?", "It is 42.")), template(last_only), control)
    assert learned(row, tokenizer) == ["It is 42.<|im_end|>"]


def test_end_ids(template: Make, control: ControlTokens) -> None:
    assert template("olmo-instruct").eos_token_ids == [control.ids["<|endoftext|>"], control.ids["<|im_end|>"]]
    assert template("gemma").eos_token_ids == [control.ids["<end_of_turn>"]]
    assert template("opened thought").opening == "<think>"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{% for m in messages %}{{ '<|im_start|>' + m.content }}", "Unexpected end of template"),
        ("{{ messages[0].nothing.at_all }}", "fails on any row"),
        ("{% for m in messages %}{{ m.content + '<|im_stop|>' }}{% endfor %}", "writes <|im_stop|>, which is not one"),
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", "could not learn to stop"),
        ("{% for m in messages %}{{ m.content | upper + '<|im_end|>' }}{% endfor %}", "does not write"),
        ("{{ ''.__class__.__mro__ }}", "fails on any row"),
    ],
    ids=["syntax", "undefined", "unknown token", "no end", "changes text", "escape"],
)
def test_a_template_that_cannot_be_used_is_refused(text: str, says: str, template: Make) -> None:
    with pytest.raises(InputError) as error:
        template(text)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{{ m.content if m.role != 'tool' else '' }}", "does not write turn 2's content (role tool)"),
        ("{{ m.content[:40] if m.content | length > 200 else m.content }}", "changes this row's text"),
        ("{{ m.content }}{{ m.content if m.role == 'tool' else '' }}", None),
        ("{{ raise_exception('no tools here') if m.role == 'tool' else m.content }}", "no tools here"),
    ],
    ids=["drops a turn", "cuts text", "writes a tool's text twice", "refuses"],
)
def test_a_row_that_the_template_changes_is_refused(
    body: str, says: str | None, template: Make, control: ControlTokens
) -> None:
    text = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}" + body + "{{ '<|im_end|>\n' }}{% endfor %}"
    text += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    turns = [
        {"role": "user", "content": "a" * 300},
        {"role": "tool", "content": "result"},
        {"role": "assistant", "content": "b"},
    ]
    (row,) = encode([Conversation(turns)], template(text), control)
    assert isinstance(row, Encoded) if says is None else isinstance(row, BadRow) and says in str(row)


def test_tools_that_are_not_shown_are_refused(template: Make, control: ControlTokens, chat: Any) -> None:
    with pytest.raises(BadRow, match="does not write the tools"):
        one(Conversation(chat("q", "a"), [{"name": "f"}]), template("chatml"), control)


def test_calls_that_are_not_shown_are_refused(template: Make, control: ControlTokens) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x", "tool_calls": [WEATHER]}]
    with pytest.raises(BadRow, match="does not write turn 2's tool call"):
        one(Conversation(turns), template("chatml"), control)
