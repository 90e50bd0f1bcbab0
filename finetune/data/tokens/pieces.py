"""One token's own text, with what does not print in escapes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from transformers.convert_slow_tokenizer import bytes_to_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


class Pieces:
    """The texts of a tokenizer's tokens, each by itself: none depends on its neighbours, as in decoding.

    Text stands in quotes, written as JSON writes it, and a part of a character as its bytes (``"\\xf0"``); a control
    token stands as it is, so that one is told from a text that spells it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: ControlTokens) -> None:
        self._tokenizer = tokenizer
        self._control = frozenset(control.ids.values())
        self._added = {index: name for name, index in tokenizer.get_added_vocab().items()}
        decoder = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"], ensure_ascii=False)
        self._of_bytes = '"ByteLevel"' in decoder
        self._fallback = '"ByteFallback"' in decoder
        self._spaces = _SPACE in decoder
        self._bytes: dict[str, int] = {char: byte for byte, char in bytes_to_unicode().items()}

    def __call__(self, index: int) -> str:
        """The text of a token, on one line."""
        if index in self._control:
            return _escaped(self._added[index])
        return f'"{_escaped(self._text(index), quoted=True)}"'

    def _text(self, index: int) -> str:
        if index in self._added:
            return self._added[index]
        piece = str(self._tokenizer.convert_ids_to_tokens(index))
        if self._of_bytes and all(char in self._bytes for char in piece):
            return bytes(self._bytes[char] for char in piece).decode("utf-8", "surrogateescape")
        if self._fallback and (match := _BYTE.fullmatch(piece)):
            return bytes([int(match[1], 16)]).decode("utf-8", "surrogateescape")
        return piece.replace(_SPACE, " ") if self._spaces else piece


def _escaped(text: str, quoted: bool = False) -> str:
    return "".join(
        f"\\x{ord(char) - 0xDC00:02x}"  # a byte that is not a character by itself
        if "\udc80" <= char <= "\udcff"
        else char
        if char.isprintable() and not (quoted and char in '"\\')
        else json.dumps(char)[1:-1]
        for char in text
    )
