"""Measures of judged answers: rewards, the KL term, accuracy, log-probabilities."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.training.progress import ShowProgress

SIDES = ("chosen", "rejected")
"""TRL's names of good and of bad answers."""

_OF_SIDE = ("rows", "rewards", "logps", "tokens", "gains", "right")

TIE = 1e-4
"""A reward no further from the KL term than this counts as half right."""


class AnswerSums:
    """Sums over judged answers, kept on the device until they are asked for."""

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.sums: torch.Tensor | None = None

    def add(self, log_probs: torch.Tensor, batch: dict[str, Any], kl: float) -> None:
        """``log_probs`` [B, T - 1], zero outside the answers; ``batch`` is TRL's, with the reference's
        log-probabilities."""
        logps, good = log_probs.double().sum(1), batch["label"].bool()
        gains = logps - batch["ref_logps"]
        # a good answer is to gain more than answers to other prompts do, a bad one less
        lead = self.beta * (gains - kl) * torch.where(good, 1.0, -1.0)
        right = (lead > TIE) + 0.5 * (lead.abs() <= TIE)
        tokens = batch["completion_mask"][:, 1:].sum(1)
        each = torch.stack([torch.ones_like(logps), self.beta * gains, logps, tokens.double(), gains, right.double()])
        sums = torch.cat([(each * side).sum(1) for side in (good, ~good)] + [each.new_tensor([kl * len(good)])])
        self.sums = sums if self.sums is None else self.sums + sums

    def take(self, processes: Processes | None = None) -> dict[str, float]:
        """The means over all processes since the last time, and ``rows``, how many; empty where there was none."""
        size = len(_OF_SIDE)
        sums = [0.0] * (2 * size + 1) if self.sums is None else self.sums.tolist()
        self.sums = None
        total = (processes or Processes()).sum(sums)
        sides = {name: dict(zip(_OF_SIDE, total[size * at :], strict=False)) for at, name in enumerate(SIDES)}
        rows = sum(side["rows"] for side in sides.values())
        if not rows:
            return {}
        means = {"rows": rows, "kl": total[-1] / rows}
        means["accuracy"] = sum(side["right"] for side in sides.values()) / rows
        for name, side in sides.items():
            means[f"rows/{name}"] = side["rows"]
            if side["rows"]:
                means[f"rewards/{name}"] = side["rewards"] / side["rows"]
                means[f"logps/{name}"] = side["logps"] / side["rows"]
                means[f"{name}_tokens"] = side["tokens"] / side["rows"]
                means[f"{name}_gain"] = side["gains"] / max(side["tokens"], 1)
        if all(side["rows"] for side in sides.values()):
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means


KEPT = (
    "rows",
    "kl",
    "accuracy",
    "rewards/margins",
    *(f"{name}/{side}" for name in ("rows", "rewards", "logps") for side in SIDES),
    *(f"{side}_{name}" for name in ("tokens", "gain") for side in SIDES),
    "prompt_sharing_saved",
)
"""Of judged answers; the names with a stroke are TRL's, but for ``rows/``, and mean what they mean there."""


class Watch:
    """Says once when good answers lose probability: over the last 256 of them or more, a tenth of it per token (0.1
    nats) against the reference."""

    WINDOW, FALL = 256, -0.1

    def __init__(self) -> None:
        self.recent: deque[tuple[float, float, float]] = deque()
        self.said = False

    def see(self, measured: dict[str, float]) -> list[str]:
        """Take in the means of some rows; returns what there is to say now."""
        rows = measured.get("rows/chosen", 0.0)
        if rows:
            tokens = rows * measured["chosen_tokens"]
            self.recent.append((rows, tokens, tokens * measured["chosen_gain"]))
        while self.recent and sum(one[0] for one in self.recent) - self.recent[0][0] >= self.WINDOW:
            self.recent.popleft()
        seen, tokens, gained = (sum(of) for of in zip(*self.recent)) if self.recent else (0, 0, 0)
        if self.said or seen < self.WINDOW or gained / max(tokens, 1) > self.FALL:
            return []
        self.said = True
        text = (
            f"warning: good answers are losing probability ({gained / max(tokens, 1):+.2f} nats per token against the "
            "reference); lower train.learning_rate, raise kto.beta or kto.desirable_weight, or train on the good answers "
            "first (hybrid-ft sft)"
        )
        return [text]


def show_progress(console: Console, metrics: Path) -> ShowProgress:
    """The live line and the JSON lines of a run on judged answers, with the warning of ``Watch``.

    ``rewards/chosen`` and ``rewards/rejected``, of good and bad answers, are beta times what they gained against
    the reference, ``rewards/margins`` their difference, ``kl`` what answers to other prompts gained (not below
    0); ``accuracy`` the share of answers that gained more than that and are good, or less and are bad; ``logps/``
    per answer; ``..._gain`` per token; ``prompt_sharing_saved`` the share of the operations that computing each
    prompt once has saved.
    """
    return ShowProgress(
        console, metrics, kept=KEPT, parts=_parts, held_out=lambda values: measures(values, "eval_"), watch=Watch().see
    )


def _parts(shown: dict[str, float], left: str) -> list[str]:
    return [
        measures(shown),
        f"{shown['tokens_per_s']:,.0f} tokens/s  saved {shown['prompt_sharing_saved']:.0%}",
        left,
    ]


def measures(values: dict[str, Any], prefix: str = "") -> str:
    """``loss 0.5000  good +0.000  bad +0.000  kl 0.000  accuracy 50%``."""
    rewards = [
        # without the sign of a zero
        f"{word} {round(values[name], 3) + 0.0:+.3f}"
        for word, name in (("good", f"{prefix}rewards/chosen"), ("bad", f"{prefix}rewards/rejected"))
        if name in values
    ]
    loss, kl, accuracy = (values[prefix + name] for name in ("loss", "kl", "accuracy"))
    return "  ".join([f"loss {loss:.4f}", *rewards, f"kl {kl:.3f}", f"accuracy {accuracy:.0%}"])
