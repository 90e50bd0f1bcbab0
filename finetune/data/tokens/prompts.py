"""Conversations that wait for an answer, as the tokens that training puts before one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.calls import settled, tools_from
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.turns import messages_from
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.arguments import wrong_name
from hybrid_ft.finetune.data.tokens.encode import encode_prompt
from hybrid_ft.finetune.data.tokens.encoder import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptEncoder:
    """Encodes conversations with a tokenizer's own chat template; no text of a turn can become a control token.

    ``arguments``: for the template, over those that were saved with the tokenizer. ``eos_token_ids``: the tokens with
    which the template ends an assistant's turn. Raises InputError for a tokenizer without a chat template, or one whose
    template cannot be used, and for an argument that the template does not know.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None = None) -> None:
        encoder = Encoder.of_tokenizer(tokenizer)
        if arguments:
            name = tokenizer.name_or_path
            if wrong := wrong_name(arguments, encoder.template.text, f"of {name}"):
                raise InputError(f"chat template argument {wrong}")
            try:
                encoder = replace(encoder, template=encoder.template.variant(arguments))
            except BadRow as bad:
                raise InputError(f"{name}: {bad}") from None
        self._encoder = encoder
        self.eos_token_ids = encoder.eos_token_ids

    def __call__(
        self, messages: list[dict[str, Any]], tools: Any = None, arguments: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Tokens up to where the assistant's answer to ``messages`` begins. Raises ValueError with the
        reason if it cannot.

        ``arguments``: for the template, for these messages alone.
        """
        try:
            turns = messages_from(messages, "messages", set(), {})
            if not turns or turns[-1]["role"] == "assistant":
                raise ValueError("messages must end on a turn that waits for an answer, not on the assistant's")
            turns, tools, _ = settled(turns, tools_from(tools))
            asked = Conversation(turns, tools, template_arguments=dict(arguments or {}))
            return encode_prompt(asked, self._encoder.template, self._encoder.control, self._encoder.thoughts)
        except BadRow as bad:
            raise ValueError(str(bad)) from None
