"""Arguments of a chat template: of a run, of a row, saved with the tokenizer, and the same wherever
a model is asked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.arguments import row_arguments, save_arguments, saved_arguments
from hybrid_ft.finetune.data.tokens.prompts import PromptEncoder
from hybrid_ft.finetune.recipe.schema import changed

STYLED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and style is defined %}"
    "{{ style ~ ': ' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{{ style ~ ': ' if style is defined else '' }}{% endif %}"
)
ASKED = [{"role": "user", "content": "the fox"}]


@pytest.fixture
def styled(tokenizer: Any, tmp_path: Path) -> Any:
    """A tokenizer of its own with the template, that can be changed."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    made = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    made.chat_template = STYLED
    return made


def shown(prepared: Any, tokenizer: Any) -> list[tuple[str, str]]:
    """Context and what is trained of each row."""
    rows = []
    for row in prepared.train:
        first = next(at for at, label in enumerate(row["labels"]) if label != -100)
        rows.append((tokenizer.decode(row["input_ids"][:first]), tokenizer.decode(row["input_ids"][first:])))
    return rows


def prepared_with(recipe: Any, tokenizer: Any, arguments: Any, **model: Any) -> Any:
    return prepare(changed(recipe, "model", from_scratch=True, chat_template_kwargs=arguments, **model), tokenizer)


def test_a_rows_arguments_go_over_the_runs(
    write_rows: Callable[..., Path], recipe: Callable[..., Any], styled: Any
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "b", "chat_template_kwargs": {"style": "brief", "other": None}},
        {"messages": None, "prompt": "a", "completion": "b", "chat_template_kwargs": '{"style": "long"}'},
    ]
    rows[2].pop("messages")
    wanted = recipe(write_rows(rows), eval={"count": 1})
    wanted = changed(wanted, "data", eval=type(wanted.data.eval)())
    start = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    end = "b<|im_end|>\n"
    for run, styles in (({"style": "plain"}, ("plain", "brief", "long")), ({}, ("", "brief", "long"))):
        prepared = prepared_with(wanted, styled, run)
        # what asks for the answer names the style, so it is not trained
        assert shown(prepared, styled) == [(start + (f"{style}: " if style else ""), end) for style in styles]
        assert prepared.template_arguments == run
        assert prepared.report.sources[0].ignored == []


def test_an_argument_that_the_template_does_not_use(
    write_rows: Callable[..., Path], recipe: Callable[..., Any], styled: Any
) -> None:
    file = write_rows([{"prompt": "a", "completion": "b", "chat_template_kwargs": {"enable_thinking": False}}])
    prepared = prepared_with(recipe(file), styled, None)
    assert prepared.report.sources[0].ignored == ["chat_template_kwargs.enable_thinking"]
    with pytest.raises(InputError) as refused:
        prepared_with(recipe(file), styled, {"stile": "x"})
    said = str(refused.value)
    assert said.startswith(
        "model.chat_template_kwargs.stile: got 'x'; chat template (the tokenizer's own) does not use it"
    )
    assert said.endswith("did you mean style?")


def test_pairs_and_held_out_rows_have_them_too(
    write_rows: Callable[..., Path], recipe: Callable[..., Any], styled: Any
) -> None:
    from hybrid_ft.finetune.recipe.schema import Dpo

    row = {"prompt": "a", "chosen": "b", "rejected": "c", "chat_template_kwargs": {"style": "brief"}}
    wanted = recipe(write_rows([row, row | {"prompt": "d"}]), eval={"count": 1}, max_dropped=0.5)
    prepared = prepared_with(wanted.model_copy(update={"dpo": Dpo()}), styled, None)
    assert all(styled.decode(pair["prompt_ids"]).endswith("brief: ") for pair in [*prepared.train, *prepared.eval])
    rows = [{"prompt": text, "completion": "b", "chat_template_kwargs": {"style": "brief"}} for text in "ab"]
    prepared = prepared_with(recipe(write_rows(rows, "held.jsonl"), eval={"count": 1}), styled, {"style": "no"})
    (held,) = prepared.eval
    assert styled.decode(held["prompt_ids"]).endswith("assistant\nbrief: ") and held["answer"] == "b"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([1], "chat_template_kwargs: got a list of 1; must be an object"),
        ("{", "chat_template_kwargs: "),
        (
            {"messages": []},
            "chat_template_kwargs.messages: got an empty list; a chat template has messages from elsewhere",
        ),
        ({"eos_token": "x"}, "chat_template_kwargs.eos_token: "),
        ({"style": "<|im_end|>"}, "chat_template_kwargs.style: got '<|im_end|>'; a row may give words and numbers"),
        ({"style": ["a", {"b": "<"}]}, "a row may give words and numbers"),
    ],
)
def test_what_a_row_cannot_give(value: Any, says: str) -> None:
    with pytest.raises(BadRow) as bad:
        row_arguments(value)
    assert says in str(bad.value) and "\n" not in str(bad.value)


def test_a_row_without_arguments() -> None:
    assert [row_arguments(value) for value in (None, "", "{}", {}, {"a": None})] == [{}] * 5
    assert row_arguments({"enable_thinking": False, "a": None}) == {"enable_thinking": False}


def test_saved_arguments_come_back_and_plain_transformers_leaves_them_alone(styled: Any, tmp_path: Path) -> None:
    save_arguments(styled, {"style": "brief"})
    styled.save_pretrained(tmp_path / "result")
    again = AutoTokenizer.from_pretrained(tmp_path / "result")
    assert saved_arguments(again) == {"style": "brief"}
    assert again.apply_chat_template(ASKED, tokenize=False) == styled.apply_chat_template(ASKED, tokenize=False)
    again.save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy/tokenizer_config.json").read_text())["chat_template_kwargs"] == {
        "style": "brief"
    }
    save_arguments(again, {})
    assert saved_arguments(again) == {}


def test_a_model_is_asked_with_what_was_saved_unless_told_otherwise(styled: Any) -> None:
    save_arguments(styled, {"style": "brief"})

    def plain(style: str) -> list[int]:
        ids: list[int] = styled.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False, style=style)
        return ids

    assert PromptEncoder(styled)(ASKED) == plain("brief")
    told = PromptEncoder(styled, {"style": "long"})
    assert told(ASKED) == plain("long")
    assert told(ASKED, None, {"style": "own"}) == plain("own")
    with pytest.raises(InputError, match="chat template argument stile: .* did you mean style"):
        PromptEncoder(styled, {"stile": "x"})


def test_training_goes_on_with_what_was_saved(
    write_rows: Callable[..., Path], recipe: Callable[..., Any], styled: Any
) -> None:
    save_arguments(styled, {"style": "brief"})
    wanted = recipe(write_rows([{"prompt": "a", "completion": "b"}]))
    assert prepared_with(wanted, styled, None).template_arguments == {"style": "brief"}
    assert prepared_with(wanted, styled, {}).template_arguments == {}


@pytest.mark.parametrize("saved", ["x", ["x"], {"messages": []}, {"eos_token": "x"}])
def test_saved_arguments_that_no_template_can_be_given(styled: Any, saved: Any) -> None:
    styled.init_kwargs["chat_template_kwargs"] = saved
    with pytest.raises(InputError, match="tokenizer_config.json: chat_template_kwargs") as refused:
        PromptEncoder(styled)
    assert "\n" not in str(refused.value)
