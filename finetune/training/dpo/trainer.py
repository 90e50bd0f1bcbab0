"""TRL's DPOTrainer on pairs whose prompts are computed once.

Its losses run unchanged on the log-probabilities.

A step of the optimizer is a number of pairs. It falls into micro-batches by tokens, each a forward and a backward pass
of TRL's own, weighed by its share of the step's pairs; so neither the size of the micro-batches nor the number of
processes changes the update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from peft import PeftModel
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Trainer
from trl import DPOTrainer

from hybrid_ft.finetune.recipe.losses import LOSSES
from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.training import seams
from hybrid_ft.finetune.training.dpo.batches import Pair, StepCollator, count_work, in_portions, padded_pairs, sizes_of
from hybrid_ft.finetune.training.dpo.metrics import PairSums
from hybrid_ft.finetune.training.trainer import RunTrainer


class PairTrainer(RunTrainer, DPOTrainer):
    """``train_dataset`` and ``eval_dataset`` have the columns of ``Pair``, the reference's among them, and ``row``.

    pairs_per_step  over all processes
    batch_tokens    of a micro-batch, each prompt counted once
    """

    counted = True
    """whether the pairs at work are this process's own, not some that keep it in step with the others"""

    def __init__(self, *args: Any, pairs_per_step: int, batch_tokens: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pairs_per_step, self.batch_tokens = pairs_per_step, batch_tokens
        self.pad_token_id = self._tokenizer.pad_token_id
        # the loop sets it when it begins; a step is tried before
        self.current_gradient_accumulation_steps = 1
        if isinstance(self.model, PeftModel):
            # TRL keeps a copy of the adapter for the reference, whose log-probabilities are computed before it is moved
            self.model.delete_adapter("ref")
        plain = seams.plain_model(self.model)
        for module in plain.modules():
            # TRL turns dropout modules off; attention's is a number
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        # without the entropies and mean logits that TRL has its head report
        seams.use_fused_head(plain)
        loss = LOSSES[self.loss_types[0]]
        self.sums = {mode: PairSums(self.beta, loss.normalised) for mode in ("train", "eval")}
        self.work = [0, 0]
        self.data_collator = StepCollator(
            self.pad_token_id,
            batch_tokens,
            count_work(plain.config, frozen_weights=plain is not self.model),
            loss.weighs_by == "chosen tokens",
            self.accelerator.num_processes,
            self.accelerator.process_index,
        )

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def get_train_dataloader(self) -> DataLoader:
        """Whole steps, in every process the same; the collator takes this process's part."""
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.pairs_per_step,
            sampler=self._get_train_sampler(self.train_dataset),
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
        """Forward and backward of each of the step's micro-batches, as ``StepCollator`` makes them. Returns the step's loss, a
        scalar without a gradient."""
        batches, losses = inputs["micro_batches"], []
        for number, batch in enumerate(batches, start=1):
            self.counts.rows = batch.pop("rows")
            with nullcontext() if number == len(batches) else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, batch))
        self.counts.rows = inputs["rows"]
        self.work = [sum(both) for both in zip(self.work, inputs["work"])]
        return torch.stack(losses).sum()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return inputs["work"][0]

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """A micro-batch's part of the step's loss, a scalar. ``inputs``: TRL's 2P rows of T tokens, [2P, T], and ``share``."""
        # gradients are averaged over the processes, each of which has its share of one step
        share = inputs.pop("share", 1.0) * self.accelerator.num_processes
        self.counted = share > 0
        return super().compute_loss(model, inputs, *args, **kwargs) * share

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        mode = "train" if self.model.training else "eval"
        seen: list[torch.Tensor] = []
        with seams.nothing_gathered(self.accelerator):
            loss = super()._compute_loss(partial(answer_log_probs, model, seen=seen), inputs, return_outputs)
        if self.counted:
            self.sums[mode].add(seen[0], inputs)
        self._metrics[mode].clear()
        return loss

    def compute_ref_log_probs(
        self, model: torch.nn.Module, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().compute_ref_log_probs(partial(answer_log_probs, model), inputs)

    def reference(self, pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's log-probabilities of both answers as it starts, float32 [P] each, in one micro-batch."""
        batch = self._prepare_inputs(padded_pairs(pairs, self.pad_token_id))
        with self.measuring():
            # without a model of its own TRL takes the base without adapters, and one may have been trained before
            self.ref_model = self.model
            try:
                chosen, rejected = self.compute_ref_log_probs(self.model, batch)
            finally:
                self.ref_model = None
        return chosen.float().cpu(), rejected.float().cpu()

    def forget_measures(self) -> None:
        """What was counted outside training."""
        self.work = [0, 0]
        for mode, sums in self.sums.items():
            sums.take()
            self._metrics[mode].clear()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and (measured := self.sums["train"].take(self.processes)):
            shared, unshared = self.processes.sum(self.work)
            logs |= measured | {"prompt_sharing_saved": 1 - shared / max(unshared, 1)}
            self.work = [0, 0]
        super().log(logs, start_time)

    def held_out(self, alone: bool = False) -> dict[str, float]:
        """Loss per pair and the other measures of the held-out pairs. Leaves the random state and the mode as they were.

        The processes share the pairs, unless this one is to compute ``alone``.
        """
        processes = Processes() if alone else self.processes
        rows, total = self.eval_dataset, 0.0
        sizes = sizes_of(rows)
        shares = in_portions(sizes, max(self.batch_tokens, max(sizes)), processes.count)
        with self.measuring():
            for portion in shares[processes.rank]:
                if processes.any(self.stop.now):
                    self.stop.agreed = True
                    break
                # one that is left without pairs computes on some all the same, because the others wait for it
                batch = self._prepare_inputs(padded_pairs(list(rows.select(portion or [0])), self.pad_token_id))
                self.counted = bool(portion)
                total += float(DPOTrainer.compute_loss(self, self.model, batch)) * len(portion)
                self.watchdog.beat()
        self.counted = True
        return {"loss": processes.sum([total])[0] / len(rows)} | self.sums["eval"].take(processes)


def answer_log_probs(
    model: Callable[..., Any],
    labels: torch.Tensor,
    attention_mask: torch.Tensor,
    seen: list[torch.Tensor] | None = None,
    **inputs: Any,
) -> SimpleNamespace:
    """What TRL reads from its fused head, [B, T - 1] each; the model hands back the tokens before a labelled one alone.

    The padded hidden states, which the head would look through for them, are never formed. Rows are padded on the
    right. Entropies, mean logits and hits, which TRL only reports, are zeros. ``seen`` receives the log-probabilities.
    """
    labels = labels[:, 1:]
    wanted = labels != -100
    keep = F.pad(wanted, (0, 1))
    # a head leaves out the last place it is given: the batch's last token, which predicts nothing, comes for that
    keep[-1, attention_mask[-1].sum() - 1] = True
    targets = F.pad(labels[wanted], (1, 0), value=-100).unsqueeze(0)
    found = model(**inputs, attention_mask=attention_mask, keep_positions=keep, labels=targets).log_probs
    log_probs = found.new_zeros(wanted.shape).masked_scatter(wanted, found)
    if seen is not None:
        seen.append(log_probs.detach())
    nothing = torch.zeros_like(log_probs, requires_grad=False)
    return SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
