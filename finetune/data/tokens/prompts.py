"""Prompts in tokens, the very tokens that training puts before an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hybrid_ft.finetune.data.messages.calls import settled, tools_from
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.turns import messages_from
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.encode import encode
from hybrid_ft.finetune.data.tokens.encoder import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What stands where the answer will; only what comes before it is used.
_ANSWER = {"role": "assistant", "content": "x"}


class PromptEncoder:
    """Encodes conversations with a tokenizer's own chat template; no text of a turn can become a control token.

    ``eos_token_ids``: the tokens with which the template ends an assistant's turn.
    Raises InputError for a tokenizer without a chat template, or one whose template cannot be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._encoder = Encoder.of_tokenizer(tokenizer)
        self.eos_token_ids = self._encoder.eos_token_ids

    def __call__(self, messages: list[dict[str, Any]], tools: Any = None) -> list[int]:
        """Tokens up to where the assistant's answer to ``messages`` begins. Raises ValueError with the reason if it cannot."""
        try:
            turns = messages_from(messages, "messages", set(), {})
            if not turns or turns[-1]["role"] == "assistant":
                raise ValueError("messages must end on a turn that waits for an answer, not on the assistant's")
            turns, tools, _ = settled(turns, tools_from(tools))
            asked = Conversation([*turns, _ANSWER], tools)
            (encoded,) = encode([asked], self._encoder.template, self._encoder.control)
            if isinstance(encoded, BadRow):
                raise encoded
        except BadRow as bad:
            raise ValueError(str(bad)) from None
        return encoded.prompt_ids
