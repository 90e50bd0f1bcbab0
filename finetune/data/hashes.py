"""Rows and prompts as numbers, to find those that are there twice."""

from __future__ import annotations

import hashlib

from hybrid_ft.finetune.data.messages.conversation import Conversation


def prompt_hash(conversation: Conversation) -> int:
    """Equal for rows that ask the same first, whatever the white space: such rows must stay on one side of a split."""
    asked: list[str] = []
    for message in conversation.messages:
        if message["role"] == "assistant" and asked:
            break
        if message["role"] == "user":
            asked.append(" ".join(message["content"].split()))
    return text_hash("\n".join(asked))


def text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
