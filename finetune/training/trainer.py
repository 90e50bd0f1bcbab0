"""What every stage adds to its TRL trainer: checkpoints, stopping, counts, checks.

TRL and transformers keep the loop, the loss, the optimizer, the schedule and the order of batches. Replaced are the
parts of transformers' Trainer that lose work: it writes checkpoints in place, loads full weights with
``strict=False`` under the names they were saved with (which are not the names in memory for this architecture),
starts a fresh optimizer where its file is missing, and trains on when the loss is not a number.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from peft import PeftModel
from transformers import PreTrainedModel, Trainer, TrainerControl
from transformers.trainer_callback import PrinterCallback

from hybrid_ft.errors import NUMERICS, InputError
from hybrid_ft.finetune.mirror.mirror import Mirror
from hybrid_ft.finetune.runs import checkpoints, device, storage, training_state, weights
from hybrid_ft.finetune.runs.atomic import write_text
from hybrid_ft.finetune.runs.checkpoints import STATE
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.signals import StopRequest
from hybrid_ft.finetune.runs.team import Team
from hybrid_ft.finetune.runs.watchdog import Watchdog
from hybrid_ft.finetune.training import seams
from hybrid_ft.finetune.training.lora_plus import loraplus_optimizer
from hybrid_ft.finetune.training.optimizers import own_optimizer
from hybrid_ft.finetune.training.packs import collate_with_rows
from hybrid_ft.finetune.training.step_ends import Counts, StepEnds
from hybrid_ft.hybrid_model.selective_checkpointing import mark_no_inputs

MOST_SKIPPED = 3
"""Steps in a row that may be left out because their gradient overflowed in bfloat16."""

LOWEST_LOSS = "lowest held-out loss"
_STATE_FILES = (training_state.FIRST_OPTIMIZER, training_state.SCHEDULE, training_state.RANDOM, STATE)


class RunTrainer(Trainer):
    """To be named before a TRL trainer: ``class X(RunTrainer, SFTTrainer)``, so that ``super()`` here is TRL's.

    The overrides stand in the order in which a step meets them; ``seams.OVERRIDDEN`` gives the reason for each.

    ``origins`` names a training row by its index. ``stop`` is looked at when a step ends. ``best_of``: the
    checkpoint with this, in words, is kept as well. ``loraplus_ratio``: of B's learning rate to A's. ``arithmetic``
    gives the context of every forward. ``mirror`` hears of every checkpoint. ``optimizer``: the recipe's name of it.
    ``team``: the processes that share a micro-batch's tokens; None: each has its own.
    """

    data_collator: Any
    optimizer: Any
    control: TrainerControl
    result_step: int | None = None
    """whose weights the model has when the training is over"""
    held_out_at: tuple[int, dict[str, float]] | None = None
    """step and values of the last held-out measure"""

    def __init__(
        self,
        *args: Any,
        folder: RunFolder,
        keep: int,
        stop: StopRequest,
        origins: Callable[[int], str],
        arithmetic: Callable[[], AbstractContextManager[object]] = nullcontext,
        best_of: str | None = None,
        loraplus_ratio: float | None = None,
        mirror: Mirror | None = None,
        optimizer: str = "adamw",
        team: Team | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.team = team or Team.of(folder.processes)
        self.folder, self.keep, self.stop, self.origins, self.mirror = folder, keep, stop, origins, mirror
        self.processes, self.best_of, self.arithmetic = folder.processes, best_of, arithmetic
        # its autocast around the model's forward; see models.arithmetic
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        precision = self.accelerator.mixed_precision
        assert (precision == "bf16") == self.args.bf16, f"accelerate computes in {precision}: the environment says so"
        self.loraplus_ratio, self.optimizer_named = loraplus_ratio, optimizer
        if own := own_optimizer(optimizer, self.args):
            self.optimizer_cls_and_kwargs = own
        self.counts, self.watchdog = Counts(), Watchdog()
        self.skipped_in_a_row = 0
        self._loss_of_step: torch.Tensor | None = None
        self.data_collator = partial(collate_with_rows, self.data_collator)
        self.remove_callback(PrinterCallback)
        self.add_callback(StepEnds(self.counts, self.processes, stop))

    def compute_loss_context_manager(self) -> AbstractContextManager[object]:
        """transformers' is empty. accelerate's autocast is around the model's forward alone, and only once ``train`` has
        prepared it; inside this one it changes nothing."""
        return self.arithmetic()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside the block the model measures as it trains: in eval mode, without gradients, in the training's
        arithmetic. Mode and random state are afterwards what they were."""
        was_training = self.model.training
        self.model.eval()
        try:
            # a loader draws from the global generator: without the fork, measuring would change the training
            with torch.random.fork_rng(devices=[]), torch.no_grad(), self.arithmetic():
                yield
        finally:
            weights.in_pieces_again(self.model)
            self.model.train(was_training)

    def count(self, tokens: int, slots: int, of_all: bool = False) -> None:
        """Add a step's tokens and slots, which are this process's share unless ``of_all``."""
        tokens, slots = (tokens, slots) if of_all else (int(n) for n in self.processes.sum([tokens, slots]))
        self.counts.tokens += tokens
        self.counts.slots += slots
        # transformers leaves the field alone unless told to count, and carries it through checkpoints
        self.state.num_input_tokens_seen += tokens

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        self.counts.began = time.perf_counter()
        batches, trained_tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.counts.rows, tokens, slots = [], 0, 0
        for batch in batches:
            rows = batch.pop("rows")
            self.counts.rows += rows
            # a process that is left without rows computes on some that carry no loss, because the others wait for it
            if rows:
                size = batch["input_ids"].numel()
                slots += size
                tokens += int(batch["attention_mask"].sum()) if "attention_mask" in batch else size
        self.count(tokens, slots)
        return batches, trained_tokens

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        # summed as tensors: a number would have a GPU waited for in every micro-batch
        loss = super().training_step(*args, **kwargs)
        self._loss_of_step = loss if self._loss_of_step is None else self._loss_of_step + loss
        self.watchdog.beat()
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | float | None = None) -> Any:
        """The last thing before the optimizer's step, which must not be taken where something is not finite."""
        norm = torch.as_tensor(super()._get_grad_norm(model, grad_norm=grad_norm))
        assert self._loss_of_step is not None
        loss, self._loss_of_step = float(self._loss_of_step), None
        if self.processes.any(not math.isfinite(loss)):
            self._refuse_step("loss", loss)
        if not self.processes.any(not math.isfinite(float(norm))):
            self.skipped_in_a_row = 0
            return norm
        if not self.args.bf16 or self.processes.any(math.isnan(norm)) or self.skipped_in_a_row == MOST_SKIPPED:
            self._refuse_step("gradient norm", float(norm))
        # bfloat16 has overflowed: without gradients the optimizer leaves every weight and moment as it is
        model.zero_grad(set_to_none=True)
        self.skipped_in_a_row += 1
        self.counts.skipped += 1
        return norm

    def _refuse_step(self, what: str, value: float) -> None:
        """Where it is not finite in this process, the rows that it worked on are named."""
        step = self.state.global_step + 1
        last = checkpoints.committed(self.folder.checkpoints)
        good = f"the last good checkpoint is {last[-1]}" if last else "no checkpoint was saved before it"
        if math.isfinite(value):
            raise InputError(f"step {step}: the {what} is not finite in another process; {good}", NUMERICS)
        suffix = f"-process-{self.processes.rank}" if self.processes.count > 1 else ""
        file = self.folder.path / f"not-finite-step-{step}{suffix}.json"
        rows = [self.origins(row) for row in self.counts.rows]
        write_text(file, json.dumps({"step": step, what: str(value), "rows": rows}, indent=1) + "\n")
        shown = ", ".join(rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
        raise InputError(
            f"step {step}: the {what} is {value}, so the step was not taken; its rows: {shown} "
            f"(all of them in {file}); {good}. Look at these rows, or lower train.learning_rate in a new output",
            NUMERICS,
        )

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Matrices and embeddings; no norm, no bias, and unlike transformers' choice no A_log: a rate, not a weight."""
        matrices = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
        return [name for name in super().get_decay_parameter_names(model) if name in matrices]

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """transformers' own, or that of LoRA+."""
        if self.loraplus_ratio is not None:
            adapted = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, adapted)
            decay = self.args.weight_decay
            self.optimizer = loraplus_optimizer(adapted, kind, options, self.loraplus_ratio, decay)
        made: torch.optim.Optimizer = super().create_optimizer(model)
        return made

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        counts = self.counts
        if "loss" in logs and counts.slots:
            logs |= {
                "tokens": self.state.num_input_tokens_seen,
                "tokens_per_s": counts.tokens / max(counts.seconds, 1e-9),
                "padding": 1 - counts.tokens / counts.slots,
                "seconds": counts.seconds,
                "memory": device.peak_memory(),
            }
            if counts.skipped:
                logs |= {"skipped": counts.skipped}
                logs.pop("grad_norm", None)
            counts.tokens, counts.slots, counts.seconds, counts.skipped = 0, 0, 0.0, 0
        super().log(logs, start_time)
        # metrics.jsonl has them all; transformers would write the whole list into every checkpoint
        self.state.log_history.clear()

    def held_out(self, alone: bool = False) -> dict[str, float]:
        """``loss`` and what else is measured of the held-out rows, exactly. Changes nothing of the training.

        The processes share the rows, unless this one is to compute ``alone``.
        """
        raise NotImplementedError

    def held_out_of_result(self) -> dict[str, float] | None:
        """The same of the weights that the model has now, measured anew only where it must be; None without such rows."""
        if self.eval_dataset is None:
            return None
        if self.held_out_at and self.held_out_at[0] == self.result_step:
            return self.held_out_at[1]
        return self.held_out(alone=True)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the loop calls it between steps; a stop request ends it early, without a result. The best checkpoint so
        far is saved where that is asked for."""
        measured = self.held_out()
        if self.stop.now:
            return {}
        self.held_out_at = (self.state.global_step, measured)
        if self.best_of == LOWEST_LOSS:
            self.note_best(measured["loss"])
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def note_best(self, value: float) -> None:
        """Keep the checkpoint of this step where no earlier one has as small a value."""
        if self.state.best_metric is None or value < self.state.best_metric:
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step
            self.control.should_save = True

    def _init_training_state(self, max_steps: int, *args: Any) -> tuple[int, int]:
        done = super()._init_training_state(max_steps, *args)
        # a resumed state brings the old save and log intervals along; the recipe's may have changed
        self.state.compute_steps(self.args, max_steps)
        # set by TRL and by the loop, before this; a run's checkpointing is never reentrant
        mark_no_inputs(self.model)
        return done

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Staged, listed and renamed by process 0, with whole tensors. No tokenizer, and no pickle."""
        plain, name = self.accelerator.unwrap_model(self.model), f"checkpoint-{self.state.global_step}"
        trained = (parameter for parameter in plain.parameters() if parameter.requires_grad)
        if self.processes.any(not weights.are_finite(trained)):
            raise InputError(
                f"step {self.state.global_step}: weights are not finite, so they were not saved; older checkpoints are "
                "whole. Lower train.learning_rate in a new output",
                NUMERICS,
            )
        self.store_flos()
        staging = self.folder.checkpoints / checkpoints.STAGING
        staged = staging / name
        with ExitStack() as around:
            if self.processes.main:
                around.enter_context(
                    storage.saving(staged.parent.with_name(name), storage.checkpoint_bytes(plain, self.optimizer_named))
                )
                around.callback(shutil.rmtree, staging, ignore_errors=True)
                staged.mkdir(parents=True)
            else:
                # the others wait for process 0 at the end, however long it writes
                around.enter_context(self.watchdog.paused())
            weights.save(plain, staged, self.processes)
            self.watchdog.beat()
            training_state.save_optimizer(self.optimizer.optimizer, plain, staged, self.processes)
            self.watchdog.beat()
            training_state.save_random(staged, self.processes)
            if self.processes.main:
                training_state.save_schedule(self.lr_scheduler, staged)
                self.save_more(staged)
                self.state.save_to_json(str(staged / STATE))
                checkpoints.commit(staged, staging.with_name(name), self.watchdog.beat)
                best = self.state.best_global_step if self.best_of else None
                rotate = self.mirror.take if self.mirror else checkpoints.rotate
                rotate(self.folder.checkpoints, self.keep, {best})
            self.processes.wait()

    def save_more(self, staged: Path) -> None:
        """What else a trainer needs to go on from a checkpoint, written beside the rest."""

    def account(self, before: Any) -> Any:
        """Of the rows, counted while they were trained on; None where that of ``before`` is whole."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Nothing: the weights are put in before a trainer divides them, by ``load_weights``."""

    def load_weights(self, folder: Path) -> None:
        """The first thing that is read on resuming; what Trainer would go on without is asked for here."""
        missing = [name for name in _STATE_FILES if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder}: {missing[0]} is missing; the run cannot go on from here")
        weights.load_into(self.accelerator.unwrap_model(self.model), folder)

    def replace_model(self, load: Callable[[], PreTrainedModel | PeftModel]) -> None:
        """Take a whole model, which only measures from now on, in place of one in pieces, which makes room for it."""
        for name in ("model", "model_wrapped", "optimizer", "lr_scheduler"):
            setattr(self, name, None)
            setattr(self.callback_handler, name, None)
        self.accelerator.free_memory()
        self.model = self.model_wrapped = load().to(self.args.device)
        seams.use_fused_head(self.model)

    @contextmanager
    def whole_beside(self, load: Callable[[], PreTrainedModel | PeftModel]) -> Iterator[None]:
        """Inside the block this process has a whole model, with which it can measure alone, beside its pieces of one."""
        pieces = self.model, self.model_wrapped
        self.model = self.model_wrapped = load().to(self.args.device)
        seams.use_fused_head(self.model)
        try:
            yield
        finally:
            self.model, self.model_wrapped = pieces

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        assert checkpoint is not None
        plain = self.accelerator.unwrap_model(self.model)
        training_state.load_optimizer(self.optimizer.optimizer, plain, Path(checkpoint))
        training_state.load_schedule(self.lr_scheduler, Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """None is ever saved; what lies there by its name would be a stranger's pickle."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        assert checkpoint is not None
        training_state.load_random(Path(checkpoint), self.processes.rank)
