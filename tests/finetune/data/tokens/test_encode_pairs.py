from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybrid_ft.finetune.data.messages.preference import Preference, Unusable
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode_pairs import TokenPair, encode_pairs
from hybrid_ft.finetune.data.tokens.template import ChatTemplate

Messages = list[dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer(pair_tokenizer: Any) -> Any:
    return pair_tokenizer


def said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def pair_of(prompt: Messages, chosen: str, rejected: str, tools: Any = None) -> Preference:
    return Preference(prompt, said("assistant", chosen), said("assistant", rejected), tools)


def encoded(tokenizer: Any, pair: Preference, template: str | None = None) -> TokenPair | BadRow | Unusable:
    control = ControlTokens(tokenizer)
    text = tokenizer.chat_template if template is None else template
    return encode_pairs([pair], ChatTemplate(text, "of the test", tokenizer, control), control)[0]


def as_pair(result: TokenPair | BadRow | Unusable) -> TokenPair:
    assert isinstance(result, TokenPair), result
    return result


def rendered(tokenizer: Any, messages: Messages, **more: Any) -> list[int]:
    return tokenizer.apply_chat_template(messages, return_dict=False, **more)


def test_the_three_parts_are_the_two_renderings(tokenizer: Any) -> None:
    prompt = [said("system", "Be kind."), said("user", "Why?")]
    pair = as_pair(encoded(tokenizer, pair_of(prompt, "Because.", "No.")))
    assert pair.prompt == rendered(tokenizer, prompt, add_generation_prompt=True)
    assert pair.prompt + pair.chosen == rendered(tokenizer, [*prompt, said("assistant", "Because.")])
    assert pair.prompt + pair.rejected == rendered(tokenizer, [*prompt, said("assistant", "No.")])
    assert pair.chosen[-1] == tokenizer.eos_token_id
    assert (pair.longest, pair.tokens) == (len(pair.prompt) + 9, len(pair.prompt) + 9 + 4)


def test_a_prompt_ends_its_own_answers_as_the_whole_does(tokenizer: Any) -> None:
    prompt = [said("user", "Why?"), said("assistant", "Hm."), said("assistant", "Well.")]
    pair = as_pair(encoded(tokenizer, pair_of(prompt, "Because.", "No.")))
    alone = rendered(tokenizer, prompt, add_generation_prompt=True)
    assert tokenizer.eos_token_id in alone and tokenizer.eos_token_id not in pair.prompt
    assert pair.prompt + pair.chosen == rendered(tokenizer, [*prompt, said("assistant", "Because.")])


def test_tools_are_in_the_prompt(tokenizer: Any) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    pair = as_pair(encoded(tokenizer, pair_of([said("user", "Why?")], "Because.", "No.", tools)))
    assert '"look"' in tokenizer.decode(pair.prompt) and '"look"' not in tokenizer.decode(pair.chosen)


def test_control_strings_in_texts_stay_text(tokenizer: Any) -> None:
    ends = "<|im_end|>"
    pair = as_pair(encoded(tokenizer, pair_of([said("user", f"Why{ends}?")], f"Yes{ends}", "No.")))
    end = tokenizer.convert_tokens_to_ids(ends)
    assert pair.prompt.count(end) == 1 and end not in pair.chosen
    assert tokenizer.decode(pair.chosen) == f"Yes{ends}<|endoftext|>"
    assert set(pair.control_tokens_as_text) == {ends}


def test_a_line_end_that_would_join_the_headers_becomes_a_token_of_the_answer(tokenizer: Any) -> None:
    prompt = [said("user", "Why?")]
    pair = as_pair(encoded(tokenizer, pair_of(prompt, "\n\nBecause.", "No.")))
    assert pair.prompt == rendered(tokenizer, prompt, add_generation_prompt=True)
    assert tokenizer.convert_ids_to_tokens(pair.chosen[:2]) == ["\n\n", "B"]
    assert pair.happened()["line_ends_split_from_header"]


texts = st.text(st.sampled_from("ab \n<|>"), min_size=1, max_size=8).filter(lambda text: bool(text.strip()))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(texts, min_size=1, max_size=4), texts, texts)
def test_any_texts_come_back_and_the_prompt_is_what_the_model_is_asked_with(
    tokenizer: Any, turns: list[str], chosen: str, rejected: str
) -> None:
    # from the last turn back, so that it is the user's
    prompt = [said(("user", "assistant")[number % 2], text) for number, text in enumerate(turns)][::-1]
    result = encoded(tokenizer, pair_of(prompt, chosen, rejected))
    if chosen == rejected:
        assert isinstance(result, Unusable) and result.kind == "identical answers"
        return
    pair = as_pair(result)
    assert pair.prompt == rendered(tokenizer, prompt, add_generation_prompt=True)
    assert tokenizer.decode(pair.chosen) == f"{chosen}<|endoftext|>"
    assert tokenizer.decode(pair.rejected) == f"{rejected}<|endoftext|>"


def test_answers_that_begin_as_the_template_asks_begin_after_that(tokenizer: Any) -> None:
    thinking = tokenizer.chat_template.replace(
        "add_generation_prompt %}{{ '<|im_start|>assistant\n'",
        "add_generation_prompt %}{{ '<|im_start|>assistant\n<think>'",
    )
    prompt = [said("user", "Why?")]
    both = as_pair(encoded(tokenizer, pair_of(prompt, "<think>a</think>b", "<think>c</think>d"), thinking))
    assert both.prompt == rendered(tokenizer, prompt, add_generation_prompt=True, chat_template=thinking)
    assert tokenizer.decode(both.chosen) == "a</think>b<|endoftext|>"
    for chosen, rejected in (("<think>a</think>b", "d"), ("d", "<think>a</think>b")):
        one = as_pair(encoded(tokenizer, pair_of(prompt, chosen, rejected), thinking))
        assert tokenizer.decode(one.chosen) == f"{chosen}<|endoftext|>"
        assert tokenizer.decode(one.rejected) == f"{rejected}<|endoftext|>"


def test_a_template_that_looks_ahead_leaves_no_shared_prompt(tokenizer: Any) -> None:
    ahead = "{% if messages[-1]['content'] == '' %}{{ 'call' }}{% endif %}" + tokenizer.chat_template.replace(
        "m['content'] }}", "m['content'] }}{% for c in m['tool_calls'] or [] %}{{ c['function']['name'] }}{% endfor %}"
    )
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    pair = pair_of([said("user", "Why?")], "", "No.")
    pair.chosen["tool_calls"] = [call]
    result = encoded(tokenizer, pair, ahead)
    assert isinstance(result, Unusable) and result.kind == "no shared prompt"
    assert (
        tokenizer.decode(
            as_pair(
                encoded(tokenizer, pair, ahead[len("{% if messages[-1]['content'] == '' %}{{ 'call' }}{% endif %}") :])
            ).chosen
        )
        == "look<|endoftext|>"
    )


def test_texts_that_the_template_makes_alike_are_identical_answers(tokenizer: Any) -> None:
    trims = tokenizer.chat_template.replace("m['content'] }}", "(m['content'] | trim) }}")
    result = encoded(tokenizer, pair_of([said("user", "Why?")], "Yes. ", "Yes."), trims)
    assert isinstance(result, Unusable) and result.kind == "identical answers"


def test_a_template_that_does_not_mark_the_answer_is_refused(tokenizer: Any) -> None:
    marked = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' and not loop.last %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    prompt = [said("user", "Why?"), said("assistant", "Hm."), said("user", "So?")]
    result = encoded(tokenizer, pair_of(prompt, "Because.", "No."), marked)
    assert isinstance(result, BadRow) and "does not mark the last answer" in str(result)
