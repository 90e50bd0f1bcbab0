"""Token log-probabilities, entropies and top-1 beside TRL's kernel.

Which of the two a trainer's head uses on a GPU hangs on this row: TRL's, until ours is 1.15 times as fast.
"""

from __future__ import annotations

from typing import Any

import checks
import torch
from common import Clock, Setting, Taken, Turn, in_short, other, record, side_by_side
from torch import Tensor

from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config
from hybrid_ft.kernels.token_log_probs import token_log_probs

TRL_WORDS = 32768  # of the vocabulary at once, as TRL's trainers call its kernel


def measure(setting: Setting) -> list[dict[str, Any]]:
    checks.log_probs(setting.device)
    config = preset_config(setting.preset)
    torch.manual_seed(0)
    with torch.device(setting.device):
        hidden = torch.randn(setting.tokens, config.hidden_size, dtype=torch.bfloat16)
        weight = torch.randn(config.vocab_size, config.hidden_size, dtype=torch.bfloat16).mul_(0.02)
        targets = torch.randint(config.vocab_size, (setting.tokens,))
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    sides, absent, note = {"ours": turn_of(token_log_probs, *leaves, targets)}, "", ""
    try:
        setting.admit_theirs()
        sides["theirs"] = turn_of(trl_kernel(), *leaves, targets)
    except Exception as error:  # noqa: BLE001
        absent = in_short(error)
    taken = side_by_side(setting, sides)
    note = ", ".join(f"{name} {side.peak / 2**30:.1f} GiB" for name, side in taken.items() if side.peak is not None)
    return [record(taken["ours"].times(), other(taken, absent, Taken.times), note=note)]


def trl_kernel() -> Any:
    """TRL's, with our arguments. Raises ModuleNotFoundError where it is not installed."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def log_probs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Any:
        return ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, TRL_WORDS, None, 1.0, ("log_probs", "entropy", "is_top1")
        )

    return log_probs


def turn_of(function: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Turn:
    up = torch.full(targets.shape, -1 / len(targets), device=targets.device)

    def turn(mark: Clock) -> None:
        torch.autograd.grad(function(hidden, weight, targets)[0], (hidden, weight), up)
        mark()

    return turn
