"""Measures of pairs: margins, accuracies, log-probabilities, lengths; and warnings of what goes wrong."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.training.progress import ShowProgress

_FIELDS = (
    "pairs",
    "chosen_logps",
    "rejected_logps",
    "chosen_tokens",
    "rejected_tokens",
    "margins",
    "right",
    "chosen_gains",
    "rejected_gains",
    "longer",
    "longer_right",
    "shorter",
    "shorter_right",
)


TIE = 1e-4
"""A margin no further from zero than this counts as half right."""


class PairSums:
    """Sums over pairs, kept on the device until they are asked for.

    per_token: rewards are of log-probabilities per token, as the loss takes them.
    """

    def __init__(self, beta: float, per_token: bool) -> None:
        self.beta, self.per_token = beta, per_token
        self.sums: torch.Tensor | None = None

    def add(self, log_probs: torch.Tensor, batch: dict[str, Any]) -> None:
        """``log_probs`` [2P, T - 1], zero outside the answers; ``batch`` is TRL's, with the reference's
        log-probabilities."""
        chosen, rejected = log_probs.double().sum(1).chunk(2)
        chosen_tokens, rejected_tokens = batch["completion_mask"][:, 1:].sum(1).chunk(2)
        chosen_gain, rejected_gain = chosen - batch["ref_chosen_logps"], rejected - batch["ref_rejected_logps"]
        rewards = [chosen_gain, rejected_gain]
        if self.per_token:
            lengths = batch["completion_mask"].sum(1).clamp(min=1).chunk(2)
            rewards = [gain / length for gain, length in zip(rewards, lengths, strict=True)]
        margin = self.beta * (rewards[0] - rewards[1])
        # rounding alone gives margins of either sign where model and reference are equal
        right = (margin > TIE) + 0.5 * (margin.abs() <= TIE)
        longer, shorter = chosen_tokens > rejected_tokens, chosen_tokens < rejected_tokens
        each = (
            torch.ones_like(margin),
            chosen,
            rejected,
            chosen_tokens,
            rejected_tokens,
            margin,
            right,
            chosen_gain,
            rejected_gain,
            longer,
            longer * right,
            shorter,
            shorter * right,
        )
        sums = torch.stack([values.double().sum() for values in each])
        self.sums = sums if self.sums is None else self.sums + sums

    def take(self, processes: Processes | None = None) -> dict[str, float]:
        """The means over all processes since the last time, and ``pairs``, how many; empty where there was none."""
        sums = [0.0] * len(_FIELDS) if self.sums is None else self.sums.tolist()
        self.sums = None
        total = dict(zip(_FIELDS, (processes or Processes()).sum(sums), strict=True))
        pairs = total["pairs"]
        if not pairs:
            return {}
        means = {
            "pairs": pairs,
            "rewards/margins": total["margins"] / pairs,
            "rewards/accuracies": total["right"] / pairs,
            "logps/chosen": total["chosen_logps"] / pairs,
            "logps/rejected": total["rejected_logps"] / pairs,
            "chosen_gain": total["chosen_gains"] / max(total["chosen_tokens"], 1),
            "rejected_gain": total["rejected_gains"] / max(total["rejected_tokens"], 1),
            "chosen_tokens": total["chosen_tokens"] / pairs,
            "rejected_tokens": total["rejected_tokens"] / pairs,
        }
        for kind in ("longer", "shorter"):
            means[kind] = total[kind] / pairs
            if total[kind]:
                means[f"accuracy_{kind}"] = total[f"{kind}_right"] / total[kind]
        return means


KEPT = (
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "chosen_gain",
    "rejected_gain",
    "chosen_tokens",
    "rejected_tokens",
    "longer",
    "accuracy_longer",
    "shorter",
    "accuracy_shorter",
    "pairs",
    "prompt_sharing_saved",
)
"""Of pairs; the names with a stroke are TRL's and mean what they mean there."""


class Watch:
    """Says once, each, when training goes wrong in a way that the loss does not show.

    Looked at are the last 256 pairs or more. Both answers falling: an answer's probability per token has gone down by
    a tenth (0.1 nats) against the reference, on the chosen side and on the rejected side. Length: the model is right on
    four of five pairs whose chosen answer is the longer one and on fewer than half of those where it is the shorter,
    with at least 32 pairs of each kind.
    """

    WINDOW, FALL, RIGHT, WRONG, ENOUGH = 256, -0.1, 0.8, 0.5, 32

    def __init__(self) -> None:
        self.recent: deque[dict[str, float]] = deque()
        self.said: set[str] = set()

    def see(self, measured: dict[str, float]) -> list[str]:
        """Take in the means of some pairs; returns what there is to say now."""
        self.recent.append(measured)
        while sum(one["pairs"] for one in self.recent) - self.recent[0]["pairs"] >= self.WINDOW:
            self.recent.popleft()
        pairs = sum(one["pairs"] for one in self.recent)
        if pairs < self.WINDOW:
            return []
        found = {"falling": self._falling(), "length": self._length(pairs)}
        new = {kind: text for kind, text in found.items() if text and kind not in self.said}
        self.said |= new.keys()
        return list(new.values())

    def _falling(self) -> str | None:
        gains = []
        for side in ("chosen", "rejected"):
            tokens = sum(one["pairs"] * one[f"{side}_tokens"] for one in self.recent)
            gain = sum(one["pairs"] * one[f"{side}_tokens"] * one[f"{side}_gain"] for one in self.recent)
            gains.append(gain / max(tokens, 1))
        if max(gains) > self.FALL:
            return None
        return (
            f"warning: chosen answers are losing probability together with the rejected ones ({gains[0]:+.2f} and "
            f"{gains[1]:+.2f} nats per token against the reference); lower train.learning_rate, raise dpo.beta, or "
            "train on the chosen answers first (hybrid-ft sft)"
        )

    def _length(self, pairs: float) -> str | None:
        right = {}
        for kind in ("longer", "shorter"):
            count = sum(one["pairs"] * one[kind] for one in self.recent)
            if count < self.ENOUGH:
                return None
            hits = sum(one["pairs"] * one[kind] * one.get(f"accuracy_{kind}", 0.0) for one in self.recent)
            right[kind] = hits / count
        if right["longer"] < self.RIGHT or right["shorter"] >= self.WRONG:
            return None
        return (
            f"warning: longer answers win for their length: right on {right['longer']:.0%} of the pairs whose chosen "
            f"answer is the longer, on {right['shorter']:.0%} where it is the shorter; use dpo.loss: sigmoid_norm, or "
            "more pairs in which the shorter answer was chosen"
        )


def show_progress(console: Console, metrics: Path) -> ShowProgress:
    """The live line and the JSON lines of a run on pairs, with the warnings of ``Watch``.

    ``rewards/margins`` and ``rewards/accuracies`` are of rewards, beta times what an answer gained against the
    reference (per token where the loss is); ``logps/chosen`` and ``logps/rejected`` per answer; ``..._gain`` per token,
    less the reference's; ``longer`` and ``shorter`` the share of pairs whose chosen answer is that;
    ``prompt_sharing_saved`` the share of the operations that computing each prompt once has saved.
    """
    return ShowProgress(
        console, metrics, kept=KEPT, parts=_parts, held_out=lambda values: measures(values, "eval_"), watch=Watch().see
    )


def _parts(shown: dict[str, float], left: str) -> list[str]:
    per_token = {side: shown[f"logps/{side}"] / max(shown[f"{side}_tokens"], 1) for side in ("chosen", "rejected")}
    lengths = f"{shown['chosen_tokens']:.0f}/{shown['rejected_tokens']:.0f} tokens"
    # beside a terminal's bar there is no room for one line in 80 columns
    return [
        measures(shown),
        f"chosen {per_token['chosen']:.2f} rejected {per_token['rejected']:.2f} a token",
        f"{lengths}  {shown['tokens_per_s']:,.0f} tokens/s  saved {shown['prompt_sharing_saved']:.0%}",
        left,
    ]


def measures(values: dict[str, Any], prefix: str = "") -> str:
    """``loss 0.6931  margin +0.000  accuracy 50%``."""
    loss, margin, accuracy = (values[prefix + name] for name in ("loss", "rewards/margins", "rewards/accuracies"))
    # without the sign of a zero
    return f"loss {loss:.4f}  margin {round(margin, 3) + 0.0:+.3f}  accuracy {accuracy:.0%}"
