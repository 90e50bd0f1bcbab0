"""Which templates and conversations are refused, and that those of many models are read."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import trl
from encoded_rows import APART, WEATHER, Make, learned, one
from tokenizers import AddedToken

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import Encoded, encode
from hybrid_ft.finetune.data.tokens.template import ChatTemplate

# Of the variants with marks, three are enough: their texts are those of the others.
TRL_TEMPLATES = [
    path
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    if not path.stem.endswith("_training") or path.stem in ("qwen3_training", "llama3_training", "gptoss_training")
]


@pytest.mark.slow  # seven of them are asked as they train in test_borders
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
