"""Training in whole steps of rows, however many micro-batches and processes.

A step of the optimizer is a number of rows. It falls into micro-batches by tokens, each a forward and a backward pass
of TRL's own, weighed by its share of the step's rows; so neither the size of the micro-batches nor the number of
processes changes the update.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer

from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.runs.team import Team
from hybrid_ft.finetune.training import seams
from hybrid_ft.finetune.training.own_tokens import own_answers
from hybrid_ft.finetune.training.pair_steps import PromptSampler
from hybrid_ft.finetune.training.portions import Row, in_portions, sizes_of
from hybrid_ft.finetune.training.trainer import RunTrainer


class StepTrainer(RunTrainer):
    """To be named before a TRL trainer, as ``RunTrainer`` is. ``train_dataset`` has a column ``row``.

    rows_per_step  over all processes
    batch_tokens   of a micro-batch
    prompts        what stands for each row's prompt where rows of one prompt are to stay together; None: any order
    """

    parts: Sequence[str]
    """columns of tokens, which a row takes of a micro-batch's budget"""
    sums: dict[str, Any]
    """measures of rows by mode, ``train`` and ``eval``: ``take`` gives their means over the
    processes and forgets them"""

    def __init__(
        self,
        *args: Any,
        rows_per_step: int,
        batch_tokens: int,
        prompts: Sequence[Hashable] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rows_per_step, self.batch_tokens, self.prompts = rows_per_step, batch_tokens, prompts
        # the loop sets it when it begins; a step is tried before
        self.current_gradient_accumulation_steps = 1
        for module in seams.plain_model(self.model).modules():
            # TRL turns dropout modules off; attention's is a number
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        self.work = [0, 0]
        # whether the rows at work count here: not where they keep this process in step, or another counts them
        self.counted = True

    def padded(self, rows: Sequence[Row]) -> dict[str, Any]:
        """A micro-batch of rows, as TRL's trainer takes it."""
        raise NotImplementedError

    def get_train_dataloader(self) -> DataLoader:
        """Whole steps, in every process the same; the collator takes this process's part."""
        sampler: Any = self._get_train_sampler(self.train_dataset)
        if self.prompts is not None:
            sampler = PromptSampler(self.prompts, self.args.data_seed)
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.rows_per_step,
            sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        return prepare_data_loader(
            loader, num_processes=1, process_index=0, use_seedable_sampler=True, data_seed=self.args.data_seed
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        self.counts.began = time.perf_counter()
        steps, _ = Trainer.get_batch_samples(self, epoch_iterator, num_batches, device)
        for step in steps:
            self.counts.rows = step["rows"]
            self.count(step["tokens"], step["tokens"], of_all=True)
        return steps, None

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        """Forward and backward of each of the step's micro-batches. Returns the step's loss, a
        scalar without a gradient."""
        batches, losses = inputs["micro_batches"], []
        for number, batch in enumerate(batches, start=1):
            self.counts.rows = batch.pop("rows")
            # the last backward alone exchanges gradients among the processes: they have added up till then
            with nullcontext() if number == len(batches) else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, own_answers(batch, self.team)))
        self.counts.rows = inputs["rows"]
        self.work = [sum(both) for both in zip(self.work, inputs["work"])]
        return torch.stack(losses).sum()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return inputs["work"][0] // self.team.size

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """A micro-batch's part of the step's loss, a scalar; TRL's mean over its rows where
        ``inputs`` have no ``share``."""
        share = inputs.pop("share", None)
        if share is not None:
            self.counted = share > 0 and self.team.speaks
        with seams.nothing_gathered(self.accelerator):
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        # TRL's own lists grow with every micro-batch, and are not shown: `sums` has the measures
        self._metrics["train" if self.model.training else "eval"].clear()
        # gradients are averaged over the processes, and each team has its share of one step; `summed` in a team gives
        # each of its processes the gradient of all its losses
        return loss if share is None else loss * (share * self.team.count)

    def forget_measures(self) -> None:
        """What was counted outside training."""
        self.work = [0, 0]
        for sums in self.sums.values():
            sums.take()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and (measured := self.sums["train"].take(self.processes)):
            shared, unshared = self.processes.sum(self.work)
            logs |= measured | {"prompt_sharing_saved": 1 - shared / max(unshared, 1)}
            self.work = [0, 0]
        super().log(logs, start_time)

    def held_out(self, alone: bool = False) -> dict[str, float]:
        """Loss per row and the other measures of the held-out rows. Leaves the random state and the mode as they were.

        The processes share the rows, unless this one is to compute ``alone``.
        """
        processes, rows, total = Processes() if alone else self.processes, self.eval_dataset, 0.0
        with self.measuring():
            for batch, size in self.held_out_batches(rows, processes, Team() if alone else self.team):
                total += float(self.compute_loss(self.model, batch)) * size
        self.counted = True
        return {"loss": processes.sum([total])[0] / len(rows)} | self.sums["eval"].take(processes)

    def held_out_batches(self, rows: Dataset, processes: Processes, team: Team) -> Iterator[tuple[dict[str, Any], int]]:
        """This process's micro-batches of held-out rows, each with the rows that count here; fewer where the run
        is asked to stop."""
        sizes = sizes_of(rows, self.parts)
        for portion in in_portions(sizes, max(self.batch_tokens, max(sizes)), team.count)[team.number]:
            if processes.any(self.stop.now):
                self.stop.agreed = True
                return
            # one that is left without rows computes on some all the same, because the others wait for it
            batch = self._prepare_inputs(own_answers(self.padded(list(rows.select(portion or [0]))), team))
            self.counted = bool(portion) and team.speaks
            yield batch, len(portion) if team.speaks else 0
            self.watchdog.beat()
