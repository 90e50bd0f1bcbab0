"""TRL's SFTTrainer on prepared rows, and the arguments it gets: those of the recipe, and none of its own choosing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from hybrid_ft.finetune import evaluate, stage
from hybrid_ft.finetune.cpu_head import take_over_on_cpu
from hybrid_ft.finetune.data import Prepared
from hybrid_ft.finetune.recipe import Recipe
from hybrid_ft.finetune.run_folder import RunFolder
from hybrid_ft.finetune.trainer import RunTrainer


@dataclass(frozen=True)
class Plan:
    """How many steps, of how many micro-batches and tokens.

    per_epoch  steps; the last step of an epoch may have fewer micro-batches, so that no row is lost
    """

    micro_batches: int
    per_epoch: int
    steps: int
    warmup: int
    tokens: int

    @classmethod
    def of(cls, recipe: Recipe, prepared: Prepared) -> Plan:
        train, rows = recipe.train, len(prepared.train)
        micro_batches = len(prepared.packs) if prepared.packs is not None else math.ceil(rows / train.batch_size)
        per_epoch = math.ceil(micro_batches / train.accumulation)
        steps = train.steps or math.ceil(train.epochs * per_epoch)
        columns = prepared.train.with_format("arrow").iter(10_000)
        tokens = sum(pc.sum(pc.list_value_length(table["input_ids"])).as_py() for table in columns)
        return cls(micro_batches, per_epoch, steps, math.floor(train.warmup * steps), tokens)


class PackedSFTTrainer(RunTrainer, SFTTrainer):
    """The rows come tokenised and packed; the held-out loss is exact."""

    held_out_at: tuple[int, float] | None = None
    """step and value of the last held-out loss"""

    def __init__(self, model: PreTrainedModel | PeftModel, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        take_over_on_cpu(model.get_base_model() if isinstance(model, PeftModel) else model)

    def held_out(self) -> tuple[float, int]:
        """Loss per trained token of the held-out rows, and the number of these tokens. Leaves the random state as it was."""
        was_training = self.model.training
        self.model.eval()
        # a loader draws from the global generator: without the fork, evaluating would change the training
        with torch.random.fork_rng(devices=[]), self.accelerator.autocast():
            result = evaluate.held_out_loss(self.model, self._held_out_batches())
        self.model.train(was_training)
        return result

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the loop calls it between steps; a stop request ends it early, without a result."""
        loss, tokens = self.held_out()
        if self.stop.now:
            return {}
        self.held_out_at = (self.state.global_step, loss)
        metrics = {"eval_loss": loss, "eval_tokens": tokens}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _held_out_batches(self) -> Iterator[dict[str, Any]]:
        for batch in self.get_eval_dataloader():
            if self.stop.now:
                return
            batch.pop("rows")
            yield self._prepare_inputs(batch)


def arguments(recipe: Recipe, plan: Plan, folder: RunFolder) -> SFTConfig:
    """TRL's arguments for a recipe. Rows come as they are to be trained on: nothing is cut, masked or packed anew."""
    packing, rows = recipe.data.packing, recipe.train.batch_size
    with warnings.catch_warnings():
        # the name that transformers 5.20 knows; 5.23 has a new one for it
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        return SFTConfig(
            **stage.arguments(recipe, plan.steps, plan.warmup, folder),
            # a micro-batch is one pack; TRL keeps its rows apart when it believes to have packed them
            packing=packing,
            packing_strategy="bfd",
            eval_packing=packing,
            per_device_train_batch_size=1 if packing else rows,
            per_device_eval_batch_size=1 if packing else rows,
            gradient_accumulation_steps=recipe.train.accumulation,
            dataset_kwargs={"skip_prepare_dataset": True},
            completion_only_loss=False,
        )
