"""The shipped template renders what the released Olmo template does.

Here by what is known of it, on its own file where that is."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

TEXT = st.text(max_size=12) | st.sampled_from(["{{x}}", "<|im_end|>", "a\n", "None", " {% raw %}", "<functions>"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
CALL = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": TEXT, "arguments": st.dictionaries(TEXT | st.sampled_from(["items", "get"]), JSON, max_size=3)}
        ),
    }
)
MESSAGE = (
    st.fixed_dictionaries({"role": st.just("system"), "content": TEXT}, optional={"functions": TEXT})
    | st.fixed_dictionaries({"role": st.sampled_from(["user", "tool", "environment"]), "content": TEXT})
    | st.fixed_dictionaries(
        {"role": st.just("assistant")},
        optional={
            "content": st.none() | TEXT,
            "function_calls": st.none() | TEXT,
            "tool_calls": st.none() | st.lists(CALL | TEXT, max_size=3),
        },
    )
)
TOOLS = st.none() | st.lists(st.dictionaries(TEXT, JSON, max_size=3), max_size=3)


def rendered(template: str, messages: list[dict[str, Any]], tools: Any = None, ask: bool = False) -> str:
    texts, _ = render_jinja_template(
        [messages], tools=tools, chat_template=template, add_generation_prompt=ask, eos_token="<|endoftext|>"
    )
    return texts[0]


def test_a_whole_conversation(templates: dict[str, str]) -> None:
    call = {"type": "function", "function": {"name": "sky", "arguments": {"city": "Paris", "days": 2, "x": [None]}}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "sun"},
        {"role": "assistant", "content": "Sunny."},
    ]
    tools = [{"name": "sky", "description": 'the "sky" é'}]
    assert rendered(templates["olmo-instruct"], messages, tools) == (
        "<|im_start|>system\nYou are a helpful function-calling AI assistant. You are provided with function "
        "signatures within <functions></functions> XML tags. You may call one or more functions to assist with the "
        "user query. Output any function calls within <function_calls></function_calls> XML tags. Do not make "
        f"assumptions about what values to plug into functions.<functions>{json.dumps(tools, ensure_ascii=False)}"
        "</functions><|im_end|>\n<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n"
        '<function_calls>sky(city="Paris", days=2, x=[null])\nsky(city="Paris", days=2, x=[null])</function_calls>'
        "<|im_end|>\n<|im_start|>environment\nsun<|im_end|>\n<|im_start|>assistant\nSunny.<|endoftext|>"
    )


def test_asking_and_a_system_of_ones_own(templates: dict[str, str]) -> None:
    messages = [{"role": "system", "content": "Be brief.", "functions": "f()"}, {"role": "user", "content": "Hi"}]
    assert rendered(templates["olmo-instruct"], messages, ask=True) == (
        "<|im_start|>system\nBe brief. <functions>f()</functions><|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_an_unknown_role_is_refused(templates: dict[str, str]) -> None:
    with pytest.raises(Exception, match="the roles are"):
        rendered(templates["olmo-instruct"], [{"role": "bot", "content": "Hi"}])


@pytest.mark.real_data
@pytest.mark.parametrize("file", ["olmo3_7b_instruct_sft_dpo.jinja", "olmo-instruct/chat_template.jinja"])
def test_equal_to_the_released_template(file: str, templates: dict[str, str]) -> None:
    folder = os.environ.get("HYBRID_FT_REAL_TOKENIZER")
    if not folder:
        pytest.skip("HYBRID_FT_REAL_TOKENIZER is not set")
    given_folder = Path(folder)
    released = next(path for path in (given_folder / file, given_folder.parent / file) if path.is_file()).read_text(
        encoding="utf-8"
    )

    @settings(max_examples=150)
    @given(st.lists(MESSAGE, max_size=6), TOOLS, st.booleans())
    def check(messages: list[dict[str, Any]], tools: Any, ask: bool) -> None:
        assert rendered(templates["olmo-instruct"], messages, tools, ask) == rendered(released, messages, tools, ask)

    check()
