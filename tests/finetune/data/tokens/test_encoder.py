"""A recipe's tokenizer and template together, and what is refused before a row is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.tokens.encoder import NO_TEMPLATE, Encoder
from hybrid_ft.finetune.recipe.schema import Recipe


@pytest.fixture
def of(tokenizer: Any) -> Any:
    """``of(chat_template=..., evaluate={...}, source={...}, own=...)``: with the tokenizer's own template replaced."""

    def made(evaluate: Any = None, source: Any = None, own: Any = "", **model: Any) -> Encoder:
        sections = {
            "model": {"path": "tiny"} | model,
            "data": {"sources": [{"path": "a.jsonl"} | (source or {})]},
            "evaluate": evaluate or {},
        }
        before = tokenizer.chat_template
        try:
            tokenizer.chat_template = before if own == "" else own
            return Encoder.of(Recipe.model_validate(sections), tokenizer)
        finally:
            tokenizer.chat_template = before

    return made


def test_the_template_is_the_recipes_or_the_tokenizers_own(of: Any, tmp_path: Path, templates: dict[str, str]) -> None:
    assert of().template.text == templates["chatml"] and of().template.name == "(the tokenizer's own)"
    file = tmp_path / "mine.jinja"
    file.write_text(templates["llama"], encoding="utf-8")
    assert of(chat_template=str(file)).template.text == templates["llama"]
    assert of(chat_template="olmo-instruct").template.text == templates["olmo-instruct"]


def test_plain_text_alone_needs_none(of: Any) -> None:
    assert of(source={"format": "text"}, own=None).template.name == NO_TEMPLATE
    with pytest.raises(InputError, match=r"^evaluate.samples: the tokenizer has no chat template to ask them with"):
        of(source={"format": "text"}, own=None, evaluate={"samples": ["Why?"]})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "is not UTF-8"),
        (b"x" * (2**20 + 1), "is larger than 1024 kB; a chat template is a short program"),
    ],
)
def test_a_file_that_is_no_template_is_refused(of: Any, tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "mine.jinja"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"^model.chat_template: .*mine.jinja {said}"):
        of(chat_template=str(file))
    file.unlink()
    file.mkdir()
    with pytest.raises(InputError, match="mine.jinja cannot be read"):
        of(chat_template=str(file))


def test_a_tokenizer_without_one_or_with_several_is_refused(of: Any, templates: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"^model.chat_template: the tokenizer has none; set model.chat_template"):
        of(own=None)
    with pytest.raises(InputError, match="the tokenizer has several and no default"):
        of(own={"tool_use": templates["chatml"], "rag": templates["chatml"]})


def test_arguments_that_the_template_does_not_read_are_named(of: Any, templates: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"^model.chat_template_kwargs.enable_thinkin"):
        of(
            own="{% if enable_thinking %}{% endif %}" + templates["chatml"],
            chat_template_kwargs={"enable_thinkin": True},
        )


def test_a_sample_that_cannot_be_rendered_is_refused_before_a_model_is_asked(
    of: Any, templates: dict[str, str]
) -> None:
    fussy = "{% if not messages[0].content.strip() %}{{ raise_exception('no text') }}{% endif %}" + templates["chatml"]
    with pytest.raises(InputError, match=r"^evaluate.samples.1: "):
        of(own=fussy, evaluate={"samples": ["fine", " "]})


def test_the_header_is_counted_in_tokens(of: Any, tokenizer: Any) -> None:
    """By what the tokenizer itself makes of the text that asks."""
    asks = tokenizer("<|im_start|>assistant\n", add_special_tokens=False).input_ids
    assert of().header_tokens() == len(asks)
    assert json.dumps(of().eos_token_ids) == json.dumps([tokenizer.convert_tokens_to_ids("<|im_end|>")])


def test_a_tokenizer_that_cannot_be_asked_says_so(tokenizer: Any) -> None:
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = None
        with pytest.raises(InputError, match="its tokenizer has no chat template, so it cannot be asked"):
            Encoder.of_tokenizer(tokenizer)
    finally:
        tokenizer.chat_template = before
    assert Encoder.of_tokenizer(tokenizer).template.text == before
