"""``hybrid-ft chat``: what the model is given at each turn, and what an interruption costs."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_ft.finetune.data.tokens.prompts import PromptEncoder
from hybrid_ft.finetune.generation import chat
from hybrid_ft.finetune.generation.generate import Sampling, answer


def test_a_conversation_over_a_pipe(
    tiny_base: Path,
    model: Any,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the model is given at each turn: the whole conversation, from the start again after /reset and /system."""
    given: list[list[dict[str, Any]]] = []

    class Watched(PromptEncoder):
        def __call__(self, messages: list[dict[str, Any]], *rest: Any) -> list[int]:
            given.append([dict(message) for message in messages])
            return super().__call__(messages, *rest)

    monkeypatch.setattr(chat, "PromptEncoder", Watched)
    lines = ["hi", "", "more", "/wrong", "/reset", "again", "/system be brief", "last", "/exit", "never"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert chat.run(str(tiny_base), None, 4, Sampling()) == 0
    ids = PromptEncoder(tiny_tokenizer)([{"role": "user", "content": "hi"}])
    (first,) = answer(model, tiny_tokenizer, [ids], [0], 4)
    user = [{"role": "user", "content": text} for text in ("hi", "more", "again", "last")]
    assert given == [
        [user[0]],
        [user[0], {"role": "assistant", "content": first.strip()}, user[1]],
        [user[2]],
        [{"role": "system", "content": "be brief"}, user[3]],
    ]
    assert capsys.readouterr().out.startswith(first)


def test_an_interrupted_answer_does_not_end_the_conversation(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    class Interrupted(chat._Printer):
        def put(self, value: torch.Tensor) -> None:
            super().put(value)
            calls.append(value)
            if len(calls) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(chat, "_Printer", Interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("first\nsecond\n"))
    assert chat.run(str(tiny_base), None, 6, Sampling()) == 0
    assert len(calls) >= 3 + 7  # the second answer: its prompt and 6 tokens
    assert "error" not in capsys.readouterr().err
