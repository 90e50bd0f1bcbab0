"""What every stage adds to its TRL trainer, at the trainer's own seams: checkpoints, stopping, counts, losses.

TRL and transformers keep the loop, the loss, the optimizer, the schedule and the order of batches. Replaced are the
parts of transformers' Trainer that lose work: it writes checkpoints in place, loads full weights with
``strict=False`` under the names they were saved with (which are not the names in memory for this architecture),
starts a fresh optimizer where its file is missing, and trains on when the loss is not a number.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hybrid_ft.finetune import checkpoints, weights
from hybrid_ft.finetune.run_folder import RunFolder
from hybrid_ft.finetune.stopping import StopRequest
from hybrid_ft.hybrid_model.errors import InputError

NUMERICS = 4
"""Exit status of a run whose loss or gradient is not finite."""

_STATE_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@dataclass
class Counts:
    """Of the steps since the last logged one: real tokens, tokens with padding, seconds from a step's data to its end."""

    tokens: int = 0
    slots: int = 0
    seconds: float = 0.0
    began: float = 0.0
    rows: list[int] = field(default_factory=list)
    """of the step at work, as indices into the training rows"""


class RunTrainer(Trainer):
    """To be named before a TRL trainer: ``class X(RunTrainer, SFTTrainer)``, so that ``super()`` here is TRL's.

    ``origins`` names a training row by its index. ``stop`` is looked at when a step ends.
    """

    data_collator: Any
    control: TrainerControl

    def __init__(
        self,
        *args: Any,
        folder: RunFolder,
        keep: int,
        stop: StopRequest,
        origins: Callable[[int], str],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.folder, self.keep, self.stop, self.origins = folder, keep, stop, origins
        self.counts = Counts()
        self.data_collator = partial(_collate_with_rows, self.data_collator)
        self.remove_callback(PrinterCallback)
        self.add_callback(_StepEnds(self))

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        self.counts.began = time.perf_counter()
        batches, trained_tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.counts.rows = [row for batch in batches for row in batch.pop("rows")]
        for batch in batches:
            slots = batch["input_ids"].numel()
            tokens = int(batch["attention_mask"].sum()) if "attention_mask" in batch else slots
            self.counts.slots += slots
            self.counts.tokens += tokens
            # transformers leaves the field alone unless told to count, and carries it through checkpoints
            self.state.num_input_tokens_seen += tokens
        return batches, trained_tokens

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._check_finite("loss", loss)
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | float | None = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._check_finite("gradient norm", norm)
        return norm

    def _check_finite(self, what: str, value: torch.Tensor | float) -> None:
        if torch.isfinite(torch.as_tensor(value)).all():
            return
        step = self.state.global_step + 1
        file = self.folder.path / f"not-finite-step-{step}.json"
        rows = [self.origins(row) for row in self.counts.rows]
        checkpoints.write_text(file, json.dumps({"step": step, what: str(float(value)), "rows": rows}, indent=1) + "\n")
        shown = ", ".join(rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
        last = checkpoints.committed(self.folder.checkpoints)
        good = f"the last good checkpoint is {last[-1]}" if last else "no checkpoint was saved before it"
        raise InputError(
            f"step {step}: the {what} is {float(value)}, so the step was not taken; its rows: {shown} "
            f"(all of them in {file}); {good}. Look at these rows, or lower train.learning_rate in a new output",
            NUMERICS,
        )

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Matrices and embeddings; no norm, no bias, and unlike transformers' choice no A_log: a rate, not a weight."""
        matrices = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
        return [name for name in super().get_decay_parameter_names(model) if name in matrices]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        counts = self.counts
        if "loss" in logs and counts.slots:
            logs |= {
                "tokens": self.state.num_input_tokens_seen,
                "tokens_per_s": counts.tokens / max(counts.seconds, 1e-9),
                "padding": 1 - counts.tokens / counts.slots,
                "seconds": counts.seconds,
                "memory": _peak_memory(),
            }
            counts.tokens, counts.slots, counts.seconds = 0, 0, 0.0
        super().log(logs, start_time)
        # metrics.jsonl has them all; transformers would write the whole list into every checkpoint
        self.state.log_history.clear()

    def _init_training_state(self, max_steps: int, *args: Any) -> tuple[int, int]:
        done = super()._init_training_state(max_steps, *args)
        # a resumed state brings the old save and log intervals along; the recipe's may have changed
        self.state.compute_steps(self.args, max_steps)
        return done

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder.checkpoints / checkpoints.STAGING)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """As Trainer does, but staged, listed and renamed; TRL's model card is left out."""
        name = f"checkpoint-{self.state.global_step}"
        staging = Path(self._get_output_dir(trial))
        Trainer._save_checkpoint(self, model, trial)
        checkpoints.commit(staging / name, self.folder.checkpoints / name)
        staging.rmdir()
        checkpoints.rotate(self.folder.checkpoints, self.keep)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Weights only: no tokenizer, and no ``training_args.bin``, which is a pickle."""
        assert output_dir is not None and state_dict is None
        weights.save(self.accelerator.unwrap_model(self.model), Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """The first thing that is read on resuming; what Trainer would go on without is asked for here."""
        missing = [name for name in _STATE_FILES if not (Path(resume_from_checkpoint) / name).is_file()]
        if missing:
            raise InputError(f"{resume_from_checkpoint}: {missing[0]} is missing; the run cannot go on from here")
        weights.load_into(self.accelerator.unwrap_model(model or self.model), Path(resume_from_checkpoint))


class _StepEnds(TrainerCallback):
    """Ends a step's time, acts on a stop request and logs what a checkpoint would otherwise cut in two."""

    def __init__(self, trainer: RunTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.counts.seconds += time.perf_counter() - self.trainer.counts.began
        if self.trainer.stop.now:
            control.should_save = control.should_training_stop = True
        # a resumed run has lost the sum of the losses since the last line, so that line ends where the checkpoint does
        control.should_log |= control.should_save


def packs_dataset(rows: Dataset, packs: list[list[int]]) -> Dataset:
    """A dataset of packs: ``input_ids``, ``labels``, ``seq_lengths`` (tokens of each row) and ``rows`` (their indices).

    A pack is put together when it is asked for; no token is stored twice.
    """
    tokens = rows.select_columns(["input_ids", "labels"])

    def put_together(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "seq_lengths": [], "rows": []}
        for pack in batch["pack"]:
            members = tokens[pack]
            for name in ("input_ids", "labels"):
                columns[name].append([token for row in members[name] for token in row])
            columns["seq_lengths"].append([len(row) for row in members["input_ids"]])
            columns["rows"].append(pack)
        return columns

    return Dataset.from_dict({"pack": packs}).with_transform(put_together)


def _collate_with_rows(
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]], examples: list[dict[str, Any]]
) -> dict[str, Any]:
    batch = collate(examples)
    batch["rows"] = [row for example in examples for row in example["rows"]]
    return batch


def _peak_memory() -> int:
    """Bytes: of the GPU's allocator, or of this process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
