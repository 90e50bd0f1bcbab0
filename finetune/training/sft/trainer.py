"""TRL's SFTTrainer on rows that are tokenised and packed, with an exact held-out loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import BatchSampler, DataLoader
from transformers import PreTrainedModel
from trl import SFTTrainer

from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.training import seams
from hybrid_ft.finetune.training.sampler import ShardedBatchSampler
from hybrid_ft.finetune.training.trainer import RunTrainer


class PackedSFTTrainer(RunTrainer, SFTTrainer):
    """The rows come tokenised and packed; the held-out loss is exact. With several processes the last row of the
    training set is the filler."""

    def __init__(self, model: PreTrainedModel | PeftModel, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.fillers = int(self.processes.count > 1)
        seams.use_fused_head(model, trl_has_put_one=True)

    def get_train_dataloader(self) -> DataLoader:
        if self.processes.count == 1:
            return super().get_train_dataloader()
        # the order of one process, which accelerate makes in this way
        order = SeedableRandomSampler(range(len(self.train_dataset) - self.fillers), data_seed=self.args.data_seed)
        loader = self._loader(self.train_dataset, BatchSampler(order, self.args.train_batch_size, drop_last=False))
        return prepare_data_loader(loader, num_processes=1, process_index=0)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with seams.nothing_gathered(self.accelerator):
            return super().compute_loss(*args, **kwargs)

    def held_out(self, alone: bool = False) -> dict[str, float]:
        """``loss`` per trained token of the held-out rows, and ``tokens``, how many these are."""
        processes = Processes() if alone else self.processes
        with self.measuring():
            here = _held_out_sums(self.model, self._held_out_batches(processes))
        loss, tokens = processes.sum(here)
        return {"loss": loss / max(tokens, 1), "tokens": int(tokens)}

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
            batch_sampler=ShardedBatchSampler(batches, processes.count, processes.rank, [len(rows) - 1]),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )


def _held_out_sums(model: torch.nn.Module, batches: Iterable[dict[str, Any]]) -> tuple[float, int]:
    """Negative log-likelihood of all trained tokens, summed over the batches, and the number of these tokens.

    To be divided once, so that the loss does not depend on how rows fall into batches. ``model`` is one that TRL has
    given its fused head.
    """
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for batch in batches:
        outputs = model(**batch, use_cache=False, fused_lm_head=True)
        total -= outputs.log_probs.sum(dtype=torch.float64).cpu()
        tokens += int(outputs.label_mask.sum())
    return float(total), tokens
