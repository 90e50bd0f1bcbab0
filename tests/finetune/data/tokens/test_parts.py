"""Texts put together from remembered parts are in the very tokens, at the very places, that the
tokenizer gives the whole."""

import json
import random
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hybrid_ft.finetune.data.tokens import parts
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.parts import PartTokenizer

LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MARKS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior, invert), byte_level])


KNOWN = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    "gpt-4, llama 3": split(LETTERS % r"\p{N}{1,3}"),
    "olmo": split(LETTERS % r"\p{N}{1,3}", "removed", True),
    "qwen 2": split(LETTERS % r"\p{N}"),
    "qwen 3.5": split(MARKS),
}
OTHERS = {
    "a space before the first word": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "words over spaces": split(r"[\p{L} ]+|."),
    "no cut": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    "spaces gone": pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(use_regex=False)]
    ),
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PIECES = [*" \n\r\t'\"/.,!?-_()[]{}<>|*#@$%^&~`", "  ", "   ", "\n\n", "\n\n\n", "\r\n", "\n ", " \n"]
PIECES += [
    "\u00e9",
    "e\u0301",
    "\u4e2d\u6587",
    "\U0001f600",
    "\u0301",
    "\u00a0",
    "\u2028",
    "\x85",
    "\x1c",
    "\u200b",
    "\u3000",
]
PIECES += [
    "\u0130",
    "\u017f",
    "'\u017f",
    "'s",
    "'S",
    "n't",
    "1",
    "22",
    "4444",
    "\u0663",
    "\u2167",
    "\u00aa",
    "caf\u00e9s",
    "x1y",
    "'ll",
    "a",
    "B",
    "The",
    "words",
]
PIECES += ["\U000f0000", "\U000f0001", "\U000f00001\U000f0001", *SPECIAL]


def tokenizer_of(pre_tokenizer: Any, normalizer: Any = None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["The words, the words.\n\n  Don't 1234 cafe\u0301 \u4e2d\u6587!?\n" * 20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def texts(control: ControlTokens, count: int) -> list[str]:
    chance = random.Random(0)
    pieces = PIECES + [control.mark(token) for token in SPECIAL]
    return ["".join(chance.choice(pieces) for _ in range(chance.randint(0, 30))) for _ in range(count)]


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["as it is", "NFC"])
@pytest.mark.parametrize("known", KNOWN)
def test_parts_are_the_whole(known: str, normalizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    control = ControlTokens(tokenizer_of(KNOWN[known], normalizer))
    assert control._in_parts is not None
    monkeypatch.setattr(parts, "_MOST", 200)
    monkeypatch.setattr(parts, "_LONGEST", 6)
    wanted = texts(control, 600)
    whole = control._backend.encode_batch(wanted, add_special_tokens=False)
    made = [one for start in range(0, len(wanted), 50) for one in control.encode(wanted[start : start + 50])]
    for text, one, other in zip(wanted, whole, made, strict=True):
        assert one.ids == other.ids, text
        at = range(len(text) + 2)
        assert [one.char_to_token(char) for char in at] == [other.char_to_token(char) for char in at], text
        tokens = range(len(one.ids) + 1)
        assert [one.token_to_chars(token) for token in tokens] == [other.token_to_chars(token) for token in tokens], (
            text
        )


@pytest.mark.parametrize("other", OTHERS)
def test_a_pattern_that_is_not_known_is_left_alone(other: str) -> None:
    assert ControlTokens(tokenizer_of(OTHERS[other]))._in_parts is None


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("model", {"dropout": 0.1}),
        ("normalizer", {"type": "NFKC"}),
        ("added_tokens", [{"content": "   ", "lstrip": False, "rstrip": False, "single_word": False}]),
        ("added_tokens", [{"content": "C1", "lstrip": True, "rstrip": False, "single_word": False}]),
        ("pre_tokenizer", None),
    ],
)
def test_what_else_makes_a_part_depend_on_its_neighbours(part: str, change: Any) -> None:
    own = json.loads(tokenizer_of(KNOWN["olmo"]).backend_tokenizer.to_str()) | {"added_tokens": []}
    assert PartTokenizer.of(None, own, "C", "C[0-9]+") is not None
    other = own | {part: own[part] | change if part == "model" else change}
    assert PartTokenizer.of(None, other, "C", "C[0-9]+") is None


def test_a_letter_that_is_missing() -> None:
    own = json.loads(tokenizer_of(KNOWN["olmo"]).backend_tokenizer.to_str()) | {"added_tokens": []}
    del own["model"]["vocab"]["q"]
    assert PartTokenizer.of(None, own, "C", "C[0-9]+") is None


def test_what_came_before_is_not_asked_for_again() -> None:
    control = ControlTokens(tokenizer_of(KNOWN["olmo"]))
    asked: list[str] = []

    class Spy:
        def encode_batch(self, given: list[str], **options: Any) -> Any:
            asked.extend(given)
            return control._backend.encode_batch(given, **options)

    assert control._in_parts is not None
    control._in_parts._backend = Spy()
    control.encode(["The words, the words.\nThe end"])
    assert asked == ["The", " words", ",", " the", ".\n", " end"]
    control.encode(["the words.\nThe the"])
    assert asked[6:] == ["the"]


def test_what_is_text_and_what_is_a_control_token_is_counted_from_either_form() -> None:
    control = ControlTokens(tokenizer_of(KNOWN["olmo"]))
    (encoded,) = control.encode([control.mark("<|im_start|>The words<|im_end|>") + "<|im_end|>"])
    assert encoded.ids == encoded.tokens.tolist() and control.count(encoded.ids) == control.count(encoded.tokens) == 2
    assert control.count(control.encode([""])[0].tokens) == control.count([]) == 0


@pytest.mark.parametrize("names", [SPECIAL, [*SPECIAL, "[UNK]"]], ids=["all with |", "nothing in all"])
def test_names_are_found_whatever_they_have_in_common(names: list[str]) -> None:
    tokenizer = tokenizer_of(KNOWN["olmo"])
    tokenizer.add_special_tokens({"additional_special_tokens": names[1:]})
    control = ControlTokens(tokenizer)
    for name in names:
        assert [match[0] for match in control.found_in(f"a {name} b{name}")] == [name, name]
    assert control.found_in("a | b [ c") == [] == control.found_in("")
