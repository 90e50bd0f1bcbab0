"""TRL's SFTTrainer on prepared rows, and the arguments it gets: those of the recipe, and none of its own choosing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import BatchSampler, DataLoader
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from hybrid_ft.finetune.data.prepare import Prepared
from hybrid_ft.finetune.evaluation import answers as evaluate
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.training import run as stage
from hybrid_ft.finetune.training.log_prob_head import take_over_on_cpu
from hybrid_ft.finetune.training.sampler import Share
from hybrid_ft.finetune.training.trainer import RunTrainer, to_itself


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
    def of(cls, recipe: Recipe, prepared: Prepared, processes: int = 1) -> Plan:
        train, rows = recipe.train, len(prepared.train)
        micro_batches = len(prepared.packs) if prepared.packs is not None else math.ceil(rows / train.batch_size)
        per_epoch = math.ceil(micro_batches / (train.accumulation * processes))
        steps = train.steps or math.ceil(train.epochs * per_epoch)
        columns = prepared.train.with_format("arrow").iter(10_000)
        tokens = sum(pc.sum(pc.list_value_length(table["input_ids"])).as_py() for table in columns)
        return cls(micro_batches, per_epoch, steps, math.floor(train.warmup * steps), tokens)


class PackedSFTTrainer(RunTrainer, SFTTrainer):
    """The rows come tokenised and packed; the held-out loss is exact. With several processes the last row of the
    training set is the filler."""

    held_out_at: tuple[int, float] | None = None
    """step and value of the last held-out loss"""

    def __init__(self, model: PreTrainedModel | PeftModel, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.fillers = int(self.processes.count > 1)
        take_over_on_cpu(model.get_base_model() if isinstance(model, PeftModel) else model)

    def get_train_dataloader(self) -> DataLoader:
        if self.processes.count == 1:
            return super().get_train_dataloader()
        # the order of one process, which accelerate makes in this way
        order = SeedableRandomSampler(range(len(self.train_dataset) - self.fillers), data_seed=self.args.data_seed)
        loader = self._loader(self.train_dataset, BatchSampler(order, self.args.train_batch_size, drop_last=False))
        return prepare_data_loader(loader, num_processes=1, process_index=0)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with to_itself(self.accelerator):
            return super().compute_loss(*args, **kwargs)

    def held_out(self, alone: bool = False) -> tuple[float, int]:
        """Loss per trained token of the held-out rows, and the number of these tokens. Leaves the random state as it was.

        The processes share the rows, unless this one is to compute ``alone``.
        """
        processes = Processes() if alone else self.processes
        with self.measuring():
            here = evaluate.held_out_sums(self.model, self._held_out_batches(processes))
        loss, tokens = processes.sum(here)
        return loss / max(tokens, 1), int(tokens)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the loop calls it between steps; a stop request ends it early, without a result."""
        loss, tokens = self.held_out()
        if self.stop.now:
            return {}
        self.held_out_at = (self.state.global_step, loss)
        self.note_held_out(loss)
        metrics = {"eval_loss": loss, "eval_tokens": tokens}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _held_out_batches(self, processes: Processes) -> Iterator[dict[str, Any]]:
        rows = range(len(self.eval_dataset) - self.fillers)
        in_order = BatchSampler(rows, self.args.eval_batch_size, drop_last=False)
        for batch in self._loader(self.eval_dataset, in_order, processes):
            if processes.any(self.stop.now):
                self.stop.agreed = True
                return
            batch.pop("rows")
            yield self._prepare_inputs(batch)
            self.watchdog.beat()

    def _loader(self, rows: Dataset, batches: BatchSampler, processes: Processes | None = None) -> DataLoader:
        """This process's share. The last of the rows is the filler where there are several processes."""
        processes, args = processes or self.processes, self.args
        return DataLoader(
            rows,
            batch_sampler=Share(batches, processes.count, processes.rank, [len(rows) - 1]),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )


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
