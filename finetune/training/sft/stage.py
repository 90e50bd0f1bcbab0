"""Supervised fine-tuning: from a recipe to a model that plain transformers opens. TRL's SFTTrainer trains."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedModel

from hybrid_ft.finetune import models
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.evaluation import answers as evaluate
from hybrid_ft.finetune.machines.hardware import check_hardware
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.folder import RunFolder, prepared_identity, run_identity
from hybrid_ft.finetune.runs.launcher import agreed
from hybrid_ft.finetune.runs.signals import StopRequest
from hybrid_ft.finetune.training import run as stage
from hybrid_ft.finetune.training.progress import ShowProgress, duration, say
from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer, Plan, arguments
from hybrid_ft.finetune.training.stuck_loss import NoSignal
from hybrid_ft.finetune.training.trainer import FILLER, packs_dataset
from hybrid_ft.hybrid_model.checkpoint.generation_config import generation_defaults


def run(recipe: Recipe, console: Console, accept_changes: bool = False) -> int:
    """The whole stage. Returns the exit status: 0 done, 75 stopped by a signal and resumable.

    ``accept_changes``: go on with a run though its recipe, data, base or code are not those it began with. Raises
    InputError for what a user can mend; until training begins nothing is left behind then.
    """
    folder = RunFolder(recipe.output or "runs/sft")
    check_hardware(recipe.model.dtype == "bfloat16", recipe.train.loader_workers)
    recipe = agreed(recipe, models.in_bfloat16(recipe))
    return stage.in_folder(folder, console, lambda stop: _Run(recipe, console, folder, stop, accept_changes).go())


class _Run:
    """One start of a run, new or resumed."""

    def __init__(self, recipe: Recipe, console: Console, folder: RunFolder, stop: StopRequest, accept: bool) -> None:
        self.recipe, self.console, self.folder, self.stop, self.accept = recipe, console, folder, stop, accept

    def say(self, text: str) -> None:
        say(self.console, text)

    def go(self) -> int:
        recipe, folder, began = self.recipe, self.folder, time.perf_counter()
        identity = run_identity(recipe, folder.processes)
        folder.check(identity, self.accept)
        if folder.finished:
            self.say(f"{folder.path}: this run is finished; nothing to do")
            return 0
        self.tokenizer = models.load_tokenizer(recipe)
        self.prepared = prepare(recipe, self.tokenizer)
        # what the rows were rendered with is what the result answers with
        self.tokenizer.chat_template = self.prepared.chat_template
        identity |= prepared_identity(self.prepared, self.tokenizer)
        changed = folder.check(identity, self.accept)
        self.plan = Plan.of(recipe, self.prepared, folder.processes.count)
        model = self._model()
        self.defaults = generation_defaults(model, self.tokenizer, self.prepared.eos_token_ids)
        saves = stage.check_storage(folder, recipe, model)
        stage.begin_or_go_on(folder, recipe, "sft", identity, changed, self.say)
        resumed = stage.newest_checkpoint(folder, self.say)
        self._introduce(model, resumed, saves)
        trainer = self._trainer(model)
        before = self._before(trainer)
        if not stage.train(trainer, recipe, self.plan.steps, self.stop, self.progress, resumed, self._model):
            return 0
        with self.console.status("measuring after the training"):
            after = self._measure(trainer, "after")
        results = stage.export(trainer, recipe, folder, self.tokenizer, self.defaults)
        evaluate.show(self.console, before, after)
        folder.finish(step=self.plan.steps, results=[path.name for path in results])
        self.say(f"done in {duration(time.perf_counter() - began)}")
        for path in results:
            self.say(f"{path.name}: {path}")
        self.say(f"next: hybrid-ft chat {results[-1]}")
        return 0

    def _model(self) -> PreTrainedModel | PeftModel:
        model = models.load_model(self.recipe, self.tokenizer)
        if self.recipe.model.from_scratch:
            # a preset's is of its own tokenizer; in another one that id may be a word, and would get no gradient
            model.get_input_embeddings().padding_idx = self.tokenizer.pad_token_id
        return model

    def _introduce(self, model: PreTrainedModel | PeftModel, resumed: Path | None, saves: str) -> None:
        """What will be trained, on what, in what portions, and where it goes."""
        recipe, plan, train = self.recipe, self.plan, self.recipe.train
        self.say(f"model     {models.describe_model(recipe, model)}")
        for line in self.prepared.report.summary():
            self.say(f"data      {line}")
        portion = (
            f"packs of at most {train.batch_tokens:,} tokens"
            if recipe.data.packing
            else f"batches of {train.batch_size} rows"
        )
        self.say(
            f"batches   {plan.micro_batches:,} {portion}, {train.accumulation * self.folder.processes.count} a step: "
            f"about {plan.tokens / plan.per_epoch:,.0f} tokens a step, {plan.per_epoch:,} steps an epoch"
        )
        self.say(
            f"training  {plan.steps:,} steps ({plan.steps / plan.per_epoch:.2f} epochs), learning rate {train.learning_rate:g}, "
            f"{train.schedule}, {plan.warmup} steps of warm-up"
        )
        self.say(saves)
        if self.folder.processes.count > 1:
            self.say(stage.describe_processes(recipe, self.folder.processes))
        self.say(f"output    {self.folder.path}" + (f", going on from {resumed.name}" if resumed else ""))

    def _trainer(self, model: PreTrainedModel | PeftModel) -> PackedSFTTrainer:
        prepared = self.prepared
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(self.folder.path / "tensorboard")
        origins = prepared.train["origin"]
        packs, fillers = _packs(prepared.train, prepared.packs), int(self.folder.processes.count > 1)
        held_out = (
            None
            if prepared.eval is None
            else packs_dataset(prepared.eval, _packs(prepared.eval, prepared.eval_packs) + [[FILLER]] * fillers)
        )
        self.progress = ShowProgress(self.console, self.folder.metrics)
        trainer = PackedSFTTrainer(
            model,
            arguments(self.recipe, self.plan, self.folder),
            train_dataset=packs_dataset(prepared.train, packs + [[FILLER]] * fillers),
            eval_dataset=held_out,
            processing_class=self.tokenizer,
            callbacks=[self.progress, NoSignal(self.say)],
            folder=self.folder,
            keep=self.recipe.train.keep,
            stop=self.stop,
            origins=lambda row: origins[row],
            arithmetic=partial(models.arithmetic, self.recipe),
            save_best=self.recipe.evaluate.load_best,
        )
        return trainer

    def _before(self, trainer: PackedSFTTrainer) -> dict[str, Any]:
        """Measured once, on the base; a resumed run reads what was written then."""
        if not self.folder.processes.main:
            return {}
        if "before" not in self.folder.record:
            with self.console.status("measuring before the training"):
                before = self._measure(trainer, "before")
            self.folder.note(before={"held_out_loss": before["loss"]})
            return before
        lines = {kind: self.folder.path / f"{kind}-before.jsonl" for kind in ("answers", "samples")}
        read = {kind: evaluate.read_lines(file) if file.exists() else [] for kind, file in lines.items()}
        return {"loss": self.folder.record["before"]["held_out_loss"], **read}

    def _measure(self, trainer: PackedSFTTrainer, when: str) -> dict[str, Any]:
        prepared, wanted = self.prepared, self.recipe.evaluate
        model = trainer.accelerator.unwrap_model(trainer.model)
        known = trainer.held_out_at
        loss = None
        if prepared.eval is not None:
            loss = known[1] if known and known[0] == trainer.result_step else trainer.held_out(alone=True)[0]
        with trainer.measuring():
            answers = (
                evaluate.answer_held_out(model, self.tokenizer, prepared.eval, self.defaults.ends, wanted)
                if wanted.answers
                else []
            )
            samples = evaluate.answer_samples(model, self.tokenizer, self.defaults.ends, wanted)
        for kind, lines in (("answers", answers), ("samples", samples)):
            if lines:
                evaluate.write_lines(self.folder.path / f"{kind}-{when}.jsonl", lines)
        return {"loss": loss, "answers": answers, "samples": samples}


def _packs(rows: Dataset, packs: list[list[int]] | None) -> list[list[int]]:
    return [[row] for row in range(len(rows))] if packs is None else packs
