"""Encoding with renamed control tokens is the tokenizer's own, and text is only text."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import Encoded, encode
from hybrid_ft.finetune.data.tokens.template import ChatTemplate

KINDS = ["byte-level", "sentencepiece", "unigram", "words"]


@pytest.mark.parametrize("kind", KINDS)
def test_marked_text_is_encoded_as_the_tokenizer_does(kind: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[kind]
    control = ControlTokens(tokenizer)
    part = st.sampled_from([*control.ids, " ", "\n", "fox", " the", "é", "▁", "<|im_", "end|>"]) | st.text(max_size=5)

    @settings(max_examples=60)
    @given(st.lists(part).map("".join))
    def check(text: str) -> None:
        (encoding,) = control.encode([control.mark(text)])
        assert encoding.ids == tokenizer(text, add_special_tokens=False).input_ids
        assert control.count(encoding.ids) == control.count_in(text)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_unmarked_text_has_no_control_token(kind: str, tokenizers: dict[str, Any]) -> None:
    control = ControlTokens(tokenizers[kind])
    for name in control.ids:
        for text in (name, f"a{name}", f" {name} {name}b", name * 3):
            assert control.count(control.encode([text])[0].ids) == 0, text


def test_unmarked_text_keeps_its_letters(tokenizers: dict[str, Any]) -> None:
    control = ControlTokens(tokenizers["byte-level"])
    text = f"fox {' '.join(control.ids)} dog"
    assert tokenizers["byte-level"].decode(control.encode([text])[0].ids) == text


def test_runs_of_white_space_are_no_control_tokens(tokenizers: dict[str, Any]) -> None:
    from copy import deepcopy

    tokenizer = deepcopy(tokenizers["byte-level"])
    tokenizer.add_tokens(["    "])
    control = ControlTokens(tokenizer)
    assert "    " not in control.ids
    assert control.encode(["a    b"])[0].ids == tokenizer("a    b", add_special_tokens=False).input_ids


def test_a_vocabulary_that_merges_text_into_a_control_token(templates: dict[str, str], chat: Any) -> None:
    """Its rows are refused, and only those: there is no other way to write the text."""
    characters = sorted(set("<s>/[INST]userassistantpq \n"))
    words = {word: index for index, word in enumerate([*characters, "<s", "<s>", "</s>", "[INST]", "[/INST]"])}
    backend = Tokenizer(models.BPE(words, merges=[("<", "s"), ("<s", ">")]))
    backend.add_special_tokens(["<s>", "</s>", "[INST]", "[/INST]"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    control = ControlTokens(tokenizer)
    template = ChatTemplate(templates["mistral"], "test", tokenizer, control)
    good, bad = encode([Conversation(chat("p", "q")), Conversation(chat("p <s> p", "q"))], template, control)
    assert isinstance(good, Encoded) and good.ids == tokenizer("<s>[INST]p[/INST]q</s>").input_ids
    assert isinstance(bad, BadRow) and "cannot encode this row's text as text" in str(bad)
