"""Measures of scored pairs: accuracy, margin, and the scores' mean, least and greatest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.training.progress import ShowProgress


class ScoreSums:
    """Sums over pairs, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self.sums: torch.Tensor | None = None
        self.bounds: torch.Tensor | None = None

    def add(self, scores: torch.Tensor) -> None:
        """``scores`` [2P, 1], the chosen answers' first."""
        chosen, rejected = scores.double().squeeze(-1).chunk(2)
        each = (torch.ones_like(chosen), chosen > rejected, chosen - rejected, (chosen + rejected) / 2)
        sums = torch.stack([values.double().sum() for values in each])
        # both bounds as greatest values
        bounds = torch.stack([-scores.min(), scores.max()])
        self.sums = sums if self.sums is None else self.sums + sums
        self.bounds = bounds if self.bounds is None else torch.maximum(self.bounds, bounds)

    def take(self, processes: Processes | None = None) -> dict[str, float]:
        """Of all processes since the last time: TRL's measures, and ``pairs``, how many; empty where there was none."""
        processes = processes or Processes()
        sums = [0.0] * 4 if self.sums is None else self.sums.tolist()
        bounds = None if self.bounds is None else self.bounds.tolist()
        self.sums = self.bounds = None
        pairs, right, margin, mean = processes.sum(sums)
        found = [one for one in processes.gather(bounds) if one is not None]
        if not pairs:
            return {}
        least, greatest = (max(of) for of in zip(*found, strict=True))
        return {
            "pairs": pairs,
            "accuracy": right / pairs,
            "margin": margin / pairs,
            "mean_reward": mean / pairs,
            "min_reward": -least,
            "max_reward": greatest,
        }


KEPT = ("pairs", "accuracy", "margin", "mean_reward", "min_reward", "max_reward", "prompt_sharing_saved")


def show_progress(console: Console, metrics: Path) -> ShowProgress:
    """The live line and the JSON lines of a run that trains a reward model.

    The names are TRL's: ``accuracy``, the share of pairs whose chosen answer has the higher score; ``margin``, how much
    higher on average; ``mean_reward``, ``min_reward`` and ``max_reward`` of all scores since the last line.
    ``prompt_sharing_saved``: the share of the operations that computing each prompt once has saved.
    """
    return ShowProgress(console, metrics, kept=KEPT, parts=_parts, held_out=lambda values: measures(values, "eval_"))


def _parts(shown: dict[str, float], left: str) -> list[str]:
    scores = f"scores {shown['min_reward']:+.2f} to {shown['max_reward']:+.2f}, mean {shown['mean_reward']:+.2f}"
    return [
        measures(shown),
        scores,
        f"{shown['tokens_per_s']:,.0f} tokens/s  saved {shown['prompt_sharing_saved']:.0%}",
        left,
    ]


def measures(values: dict[str, Any], prefix: str = "") -> str:
    """``loss 0.6931  margin +0.000  accuracy 50%``."""
    loss, margin, accuracy = (values[prefix + name] for name in ("loss", "margin", "accuracy"))
    # without the sign of a zero
    return f"loss {loss:.4f}  margin {round(margin, 3) + 0.0:+.3f}  accuracy {accuracy:.0%}"
