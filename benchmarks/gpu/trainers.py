"""Both sides' training step inside TRL's SFTTrainer, where TRL is installed.

Theirs is the trainer as it comes on transformers' model, its batch padded rows: the exact one that is fastest, for rows
of one length need no padding, and transformers' layers leak in a packed row. Ours is this project's subclass, its batch
packed. The weights are bfloat16 and so is the arithmetic, without autocast; labels, the fused head, the metrics of
every step and the clipping are the trainer's.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from common import Clock, Setting, Turn
from torch import Tensor


class Trainers:
    """A trainer for each side, on the same rows: ids [sequences, tokens]. Raises ModuleNotFoundError without TRL."""

    def __init__(self, setting: Setting, ids: Tensor, folder: Path) -> None:
        import trl  # noqa: F401
        from datasets import Dataset

        self.setting, self.folder = setting, folder
        rows = ids.tolist()
        self.rows = Dataset.from_dict({"input_ids": rows, "labels": rows})

    def of(self, name: str, model: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return self._ours(model) if name == "ours" else self._theirs(model)

    def _theirs(self, model: Any) -> Any:
        from trl import SFTTrainer

        return SFTTrainer(
            model,
            self._arguments(per_device_train_batch_size=len(self.rows)),
            train_dataset=self.rows,
            processing_class=_tokenizer(),
        )

    def _ours(self, model: Any) -> Any:
        from hybrid_ft.finetune.runs.folder import RunFolder
        from hybrid_ft.finetune.runs.signals import StopRequest
        from hybrid_ft.finetune.training.packs import packs_dataset
        from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer

        return PackedSFTTrainer(
            model,
            self._arguments(packing=True, packing_strategy="bfd", per_device_train_batch_size=1),
            train_dataset=packs_dataset(self.rows, [list(range(len(self.rows)))]),
            processing_class=_tokenizer(),
            folder=RunFolder(self.folder / "ours"),
            keep=1,
            stop=StopRequest(),
            origins=str,
        )

    def _arguments(self, **more: Any) -> Any:
        from trl import SFTConfig

        return SFTConfig(
            output_dir=str(self.folder),
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            use_cpu=self.setting.smoke,
            bf16=False,
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
            **more,
        )


class Step:
    """A trainer's step on its one batch, which is put together before the clock runs."""

    def __init__(self, trainer: Any, optimizer: torch.optim.Optimizer) -> None:
        self.trainer, self.optimizer = trainer, optimizer
        batches = iter(trainer.get_train_dataloader())
        (self.batch,), self.trained = trainer.get_batch_samples(batches, 1, trainer.args.device)
        trainer.current_gradient_accumulation_steps = 1

    def loss(self) -> float:
        with torch.no_grad():
            inputs = self.trainer._prepare_inputs(dict(self.batch))
            return float(self.trainer.compute_loss(self.trainer.model, inputs, num_items_in_batch=self.trained))

    def turn(self) -> Turn:
        trainer = self.trainer

        def turn(mark: Clock) -> None:
            self.optimizer.zero_grad()  # first, because a side that ran out of memory may have left gradients
            trainer.training_step(trainer.model, dict(self.batch), self.trained)
            trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
            self.optimizer.step()
            mark()

        return turn


def _tokenizer() -> Any:
    """For its id of padding alone; the rows are numbers already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
