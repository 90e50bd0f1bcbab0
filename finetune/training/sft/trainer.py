"""TRL's SFTTrainer on rows that are tokenised and packed, with an exact held-out loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import BatchSampler, DataLoader
from transformers import PreTrainedModel
from trl import SFTTrainer

from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.runs.team import Team
from hybrid_ft.finetune.training import seams
from hybrid_ft.finetune.training.own_tokens import own_pack
from hybrid_ft.finetune.training.sampler import ShardedBatchSampler
from hybrid_ft.finetune.training.trainer import RunTrainer


class PackedSFTTrainer(RunTrainer, SFTTrainer):
    """The rows come tokenised and packed; the held-out loss is exact. With several processes the last row of the
    training set is the filler. ``a_step``: micro-batches of an optimizer step, over all processes. ``weighted``: tokens
    may weigh less than 1 in the loss, which then is ``sum(weight * nll) / sum(weight)`` over a step."""

    def __init__(
        self, model: PreTrainedModel | PeftModel, *args: Any, a_step: int = 1, weighted: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(model, *args, **kwargs)
        self.a_step, self.weighted = a_step, weighted
        self._per_weight = 1.0
        self.fillers = int(self.processes.count > 1)
        seams.use_fused_head(model, trl_has_put_one=True)

    def get_train_dataloader(self) -> DataLoader:
        if self.processes.count == 1:
            return super().get_train_dataloader()
        # the order of one process, which accelerate makes in this way
        order = SeedableRandomSampler(range(len(self.train_dataset) - self.fillers), data_seed=self.args.data_seed)
        batches = BatchSampler(order, self.args.train_batch_size, drop_last=False)
        loader = self._loader(self.train_dataset, batches, self.team, self.a_step)
        return prepare_data_loader(loader, num_processes=1, process_index=0)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        return super().get_batch_samples((own_pack(one, self.team) for one in epoch_iterator), num_batches, device)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """The trained tokens of a step, over all processes. How many there are for a weight of 1 is kept."""
        tokens = super()._get_num_items_in_batch(batch_samples, device)
        if self.weighted:
            mine = [(batch["labels"][:, 1:] != -100, batch.get("weights")) for batch in batch_samples]
            sums = [mask.sum() if weights is None else weights[:, 1:][mask].double().sum() for mask, weights in mine]
            trained, weight = self.processes.sum([sum(int(mask.sum()) for mask, _ in mine), float(sum(sums))])
            self._per_weight = trained / weight if weight else 1.0
        return tokens

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.weighted:
            model = _weighing(model, inputs.pop("weights", None), self._per_weight)
        # TRL gathers three measures in every micro-batch, which no screen shows, and each makes the processes wait
        with seams.nothing_gathered(self.accelerator):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def held_out(self, alone: bool = False) -> dict[str, float]:
        """``loss`` per trained token of the held-out rows, by their weights, and ``tokens``, how many these are."""
        processes = Processes() if alone else self.processes
        with self.measuring():
            here = _held_out_sums(self.model, self._held_out_batches(processes, Team() if alone else self.team))
        loss, weight, tokens = processes.sum(here)
        return {"loss": loss / weight if weight else 0.0, "tokens": int(tokens)}

    def _held_out_batches(self, processes: Processes, team: Team) -> Iterator[dict[str, Any]]:
        rows = range(len(self.eval_dataset) - self.fillers)
        in_order = BatchSampler(rows, self.args.eval_batch_size, drop_last=False)
        for batch in self._loader(self.eval_dataset, in_order, team, team.count):
            if processes.any(self.stop.now):
                self.stop.agreed = True
                return
            batch.pop("rows")
            yield self._prepare_inputs(own_pack(batch, team))
            self.watchdog.beat()

    def _loader(self, rows: Dataset, batches: BatchSampler, team: Team, a_step: int) -> DataLoader:
        """This team's share. The last of the rows is the filler where there are several processes."""
        args = self.args
        return DataLoader(
            rows,
            batch_sampler=ShardedBatchSampler(batches, team.count, team.number, [len(rows) - 1], a_step),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )


def _weighing(model: Any, weights: torch.Tensor | None, per_weight: float) -> Callable[..., Any]:
    """A model called with its fused head, each token's log-probability times its weight.

    TRL divides their sum by the number of a step's tokens; times ``per_weight``, tokens for a weight of 1, that is a
    division by the sum of their weights.
    """
    factor = per_weight if weights is None else weights[:, 1:] * per_weight

    def weighed(**inputs: Any) -> Any:
        outputs = model(**inputs)
        outputs.log_probs = outputs.log_probs * factor
        return outputs

    return weighed


def _held_out_sums(model: torch.nn.Module, batches: Iterable[dict[str, Any]]) -> tuple[float, float, int]:
    """Negative log-likelihood of all trained tokens times their weights, the sum of these, and the number of tokens.

    To be divided once, so that the loss does not depend on how rows fall into batches. ``model`` is one that TRL has
    given its fused head.
    """
    total, weight, tokens = torch.zeros((), dtype=torch.float64), 0.0, 0
    for batch in batches:
        weights = batch.pop("weights", None)
        outputs = model(**batch, use_cache=False, fused_lm_head=True)
        here = int(outputs.label_mask.sum())
        log_probs = outputs.log_probs if weights is None else outputs.log_probs * weights[:, 1:]
        total -= log_probs.sum(dtype=torch.float64).cpu()
        weight += here if weights is None else float(weights[:, 1:][outputs.label_mask].sum(dtype=torch.float64))
        tokens += here
    return float(total), weight, tokens
