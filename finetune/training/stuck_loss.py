"""Warns once when the loss stays where nothing is learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

ENOUGH = 20
"""logged losses in a row"""
TOLERANCE = 1e-6

_LABELS = (
    "the loss has been exactly 0 {steps}; every trained token is already certain, or none is trained: look at the rows, "
    "and at which of their tokens are trained, with hybrid-ft data RECIPE"
)
_PAIRS = (
    "the loss has been {loss:.6f} {steps}, which is that of a model equal to its reference; look whether chosen and "
    "rejected are alike, and whether train.learning_rate ({rate:g}) is large enough"
)


class StuckLoss(TrainerCallback):
    """One line by ``say`` after 20 such logged losses in a row, or at the end of a shorter run that had no other.

    ``first`` is the loss of equal models on pairs (ln 2 for sigmoid), met to 1e-6; without it the loss is of tokens,
    and 0.0 is meant. Warm-up does not count.
    """

    def __init__(self, say: Callable[[str], None], first: float | None = None) -> None:
        self.say, self.first = say, first
        self.row = 0
        self.healthy = self.said = False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if "loss" not in logs or state.global_step <= args.get_warmup_steps(state.max_steps):
            return
        stuck = logs["loss"] == 0.0 if self.first is None else abs(logs["loss"] - self.first) <= TOLERANCE
        self.row = self.row + 1 if stuck else 0
        self.healthy |= not stuck
        if self.row >= ENOUGH:
            self._say(args, state, f"for {self.row} logged steps")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # the first step on pairs has this loss in every run: it begins at the reference
        enough = 1 if self.first is None else 2
        whole = state.global_step >= state.max_steps
        if whole and not self.healthy and self.row >= enough:
            self._say(args, state, "in every logged step" + (" after warm-up" if args.warmup_steps else ""))

    def _say(self, args: TrainingArguments, state: TrainerState, steps: str) -> None:
        if not self.said and state.is_world_process_zero:
            text = _LABELS if self.first is None else _PAIRS
            self.say("no learning signal: " + text.format(steps=steps, loss=self.first, rate=args.learning_rate))
        self.said = True
