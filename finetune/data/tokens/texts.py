"""Plain texts in tokens, an end token after each, and long ones in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.plain_text import PlainText
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(slots=True)
class EncodedText:
    """A text, or a piece of one, in tokens: all are trained but the first, which nothing predicts.

    ``control_tokens_as_text``: control tokens that stood in the text and were encoded as text.
    """

    ids: list[int]
    control_tokens_as_text: tuple[str, ...] = ()

    def pieces(self, size: int) -> list[EncodedText]:
        """The text in pieces of at most ``size`` tokens. Each begins with the token that the one before ends with, so
        that every token of the text is trained, and once."""
        step = size - 1
        starts = range(0, max(1, len(self.ids) - 1), step)
        return [EncodedText(self.ids[start : start + size], self.control_tokens_as_text) for start in starts]

    def columns(self) -> dict[str, Any]:
        """The row for the file of tokens, its origin apart; a text has no prompt and no answer."""
        labels = [-100, *self.ids[1:]]
        return {"input_ids": self.ids, "labels": labels, "weights": [], "prompt_ids": [], "answer": ""}

    def sizes(self) -> dict[str, int]:
        """Tokens of the row, and how many of them are trained."""
        return {"length": len(self.ids), "trained": len(self.ids) - 1}


def encode_texts(
    texts: Sequence[PlainText], tokenizer: PreTrainedTokenizerBase, control: ControlTokens
) -> list[EncodedText | BadRow]:
    """Encode texts: the tokenizer's own beginning, where it has one, the text, and the token that ends a document.

    Raises InputError for a tokenizer without an end token.
    """
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise InputError("model.tokenizer: has no eos_token, which ends a plain text; use another tokenizer")
    begin = _beginning(tokenizer)
    encoded: list[EncodedText | BadRow] = []
    for text, encoding in zip(texts, control.encode([text.text for text in texts]), strict=True):
        if control.count(encoding.tokens):
            reason = "its vocabulary builds a control token from plain text; take the text out of the row"
            encoded.append(BadRow("control token in text", f"the tokenizer cannot encode this row as text: {reason}"))
            continue
        found = {match[0] for match in control.found_in(text.text)}
        encoded.append(EncodedText([*begin, *encoding.ids, end], tuple(sorted(found))))
    return encoded


def _beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the tokenizer puts before any text."""
    ids: list[int] = tokenizer("")["input_ids"]
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and ids[:1] == [begin] else []
