"""A token's own text: escapes for what does not print, bytes of parts of characters, control tokens told from text."""

import json
from typing import Any

import pytest

from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.pieces import Pieces

TEXT = 'Two.\n\nThe "fox"\t\\ 😀\u200b <|im_end|> says: é'


def written(tokenizer: Any, control: ControlTokens, text: str) -> list[str]:
    pieces = Pieces(tokenizer, control)
    return [pieces(index) for index in control.encode([text])[0].ids]


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_the_pieces_of_a_text_are_its_characters(kind: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[kind]
    pieces = written(tokenizer, ControlTokens(tokenizer), TEXT)
    assert all(piece.isprintable() and piece[0] == piece[-1] == '"' for piece in pieces)
    raw = b"".join(_bytes(piece[1:-1]) for piece in pieces)
    assert raw.decode().removeprefix(" " * (kind == "sentencepiece")) == TEXT


def _bytes(piece: str) -> bytes:
    """What an escaped piece stands for: a byte where no character is whole, else what JSON reads."""
    whole = b""
    while piece:
        if piece.startswith("\\x"):
            whole, piece = whole + bytes([int(piece[2:4], 16)]), piece[4:]
            continue
        size = 6 if piece.startswith("\\u") else 2 if piece.startswith("\\") else 1
        whole, piece = whole + json.loads(f'"{piece[:size]}"').encode(), piece[size:]
    return whole


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "unigram", "words"])
def test_a_control_token_is_told_from_its_text(kind: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[kind]
    control = ControlTokens(tokenizer)
    assert written(tokenizer, control, control.mark("<|im_end|>")) == ["<|im_end|>"]
    assert "<|im_end|>" not in written(tokenizer, control, "<|im_end|>")


def test_pieces_by_kind_of_tokenizer(tokenizers: dict[str, Any]) -> None:
    byte_level = tokenizers["byte-level"]
    assert written(byte_level, ControlTokens(byte_level), "\nOne") == ['"\\n"', '"One"']
    unigram = tokenizers["unigram"]
    assert "".join(piece[1:-1] for piece in written(unigram, ControlTokens(unigram), "The fox")) == " The fox"
