"""``hybrid-ft chat``: a conversation in the terminal or over a pipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import TextStreamer

from hybrid_ft.finetune.data.tokens.prompts import PromptEncoder
from hybrid_ft.finetune.generation.generate import Sampling, model_for_answers, tokenizer_for_answers
from hybrid_ft.hybrid_model.checkpoint.generation_config import end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELP = "/reset starts over, /system TEXT sets the system message and starts over, /exit ends; Ctrl-C stops an answer"

# A model's text may not move the terminal's cursor or change its colours.
_TERMINAL_CODES = {code: None for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if chr(code) not in "\n\t"}


class _Printer(TextStreamer):
    """Prints an answer as it comes, and keeps it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        print(text.translate(_TERMINAL_CODES), end="\n" if stream_end else "", flush=True)


def run(
    path: str,
    system: str | None,
    max_new_tokens: int,
    sampling: Sampling,
    arguments: Mapping[str, Any] | None = None,
) -> int:
    """Read turns until the input ends; the whole conversation goes to the model at each turn.

    ``arguments``: for the chat template, over those that were saved with the model.
    """
    tokenizer = tokenizer_for_answers(path)
    encoder = PromptEncoder(tokenizer, arguments)
    model = model_for_answers(path)
    end_ids = end_tokens(model, tokenizer, encoder.eos_token_ids)
    pad_id = end_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    config = sampling.config(end_ids, pad_id, max_new_tokens)
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  gives input() line editing and history

        print(HELP)
    torch.manual_seed(sampling.seed)
    first: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages = list(first)
    while (line := _read("> " if interactive else "")) is not None:
        command, _, argument = line.strip().partition(" ")
        if command == "/exit":
            break
        if command in ("/reset", "/system"):
            if command == "/system":
                first = [{"role": "system", "content": argument.strip()}] if argument.strip() else []
            messages = list(first)
            continue
        if command.startswith("/") or not line.strip():
            if line.strip():
                print(HELP)
            continue
        if any("\ud800" <= letter <= "\udfff" for letter in line):  # how Python reads bytes that are not UTF-8
            print("error: this line is not UTF-8", file=sys.stderr)
            continue
        messages.append({"role": "user", "content": line})
        try:
            ids = torch.tensor([encoder(messages)], device=model.device)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            messages.pop()
            continue
        printer = _Printer(tokenizer)
        try:
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=printer
            )
        except KeyboardInterrupt:
            print()
        if text := printer.text.strip():
            messages.append({"role": "assistant", "content": text})
        else:  # chat templates have no place for a turn without text
            messages.pop()
    return 0


def _read(prompt: str) -> str | None:
    """A line, or None at the end of the input; Ctrl-C where nothing is being answered ends it too."""
    try:
        return input(prompt)
    except (EOFError, KeyboardInterrupt):
        print()
        return None
