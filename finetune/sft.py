"""Supervised fine-tuning: from a recipe to a model that plain transformers opens. TRL's SFTTrainer trains."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedModel

from hybrid_ft.finetune import checkpoints, evaluate, stage
from hybrid_ft.finetune.data import prepare
from hybrid_ft.finetune.progress import ShowProgress, duration, say
from hybrid_ft.finetune.recipe import Recipe
from hybrid_ft.finetune.run_folder import RunFolder, prepared_identity, recipe_identity, versions
from hybrid_ft.finetune.sft_trainer import PackedSFTTrainer, Plan, arguments
from hybrid_ft.finetune.stopping import StopRequest
from hybrid_ft.finetune.trainer import packs_dataset


def run(recipe: Recipe, console: Console) -> int:
    """The whole stage. Returns the exit status: 0 done, 75 stopped by a signal and resumable.

    Raises InputError for what a user can mend; until training begins nothing is left behind then.
    """
    transformers.logging.disable_progress_bar()
    folder = RunFolder(recipe.output or "runs/sft")
    return stage.in_folder(folder, console, lambda stop: _Run(recipe, console, folder, stop).go())


class _Run:
    """One start of a run, new or resumed."""

    def __init__(self, recipe: Recipe, console: Console, folder: RunFolder, stop: StopRequest) -> None:
        self.recipe, self.console, self.folder, self.stop = recipe, console, folder, stop

    def say(self, text: str) -> None:
        say(self.console, text)

    def go(self) -> int:
        recipe, folder, began = self.recipe, self.folder, time.perf_counter()
        identity = recipe_identity(recipe)
        folder.check(identity)
        if folder.finished:
            self.say(f"{folder.path}: this run is finished; nothing to do")
            return 0
        self.tokenizer = stage.load_tokenizer(recipe)
        self.prepared = prepare(recipe, self.tokenizer)
        # what the rows were rendered with is what the result answers with
        self.tokenizer.chat_template = self.prepared.chat_template
        identity |= prepared_identity(self.prepared, self.tokenizer)
        folder.check(identity)
        self.plan = Plan.of(recipe, self.prepared)
        model = stage.load_model(recipe, self.tokenizer)
        if recipe.model.from_scratch:
            # a preset's is of its own tokenizer; in another one that id may be a word, and would get no gradient
            model.get_input_embeddings().padding_idx = self.tokenizer.pad_token_id
        if not folder.begun:
            folder.begin(recipe, identity)
        elif folder.record["versions"] != versions():
            self.say(
                "versions or the device have changed since the run began, so it may not end bit for bit where it would have"
            )
        resumed = checkpoints.newest(folder.checkpoints, self.say)
        self._introduce(model, resumed)
        trainer = self._trainer(model)
        before = self._before(trainer)
        stage.train(trainer, recipe, self.plan.steps, folder, self.stop, self.progress, resumed)
        with self.console.status("measuring after the training"):
            after = self._measure(trainer, "after")
        results = stage.export(trainer, recipe, folder, self.tokenizer, self.prepared.end_ids)
        evaluate.show(self.console, before, after)
        folder.finish(step=self.plan.steps, results=[path.name for path in results])
        self.say(f"done in {duration(time.perf_counter() - began)}")
        for path in results:
            self.say(f"{path.name}: {path}")
        self.say(f"next: hybrid-ft chat {results[-1]}")
        return 0

    def _introduce(self, model: PreTrainedModel | PeftModel, resumed: Path | None) -> None:
        """What will be trained, on what, in what portions, and where it goes."""
        recipe, plan, train = self.recipe, self.plan, self.recipe.train
        self.say(f"model     {stage.describe_model(recipe, model)}")
        for line in self.prepared.report.summary():
            self.say(f"data      {line}")
        portion = (
            f"packs of at most {train.batch_tokens:,} tokens"
            if recipe.data.packing
            else f"batches of {train.batch_size} rows"
        )
        self.say(
            f"batches   {plan.micro_batches:,} {portion}, {train.accumulation} a step: "
            f"about {plan.tokens / plan.per_epoch:,.0f} tokens a step, {plan.per_epoch:,} steps an epoch"
        )
        self.say(
            f"training  {plan.steps:,} steps ({plan.steps / plan.per_epoch:.2f} epochs), learning rate {train.learning_rate:g}, "
            f"{train.schedule}, {plan.warmup} steps of warm-up"
        )
        self.say(f"output    {self.folder.path}" + (f", going on from {resumed.name}" if resumed else ""))

    def _trainer(self, model: PreTrainedModel | PeftModel) -> PackedSFTTrainer:
        prepared = self.prepared
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(self.folder.path / "tensorboard")
        origins = prepared.train["origin"]
        held_out = (
            None if prepared.eval is None else packs_dataset(prepared.eval, _packs(prepared.eval, prepared.eval_packs))
        )
        self.progress = ShowProgress(self.console, self.folder.metrics)
        return PackedSFTTrainer(
            model,
            arguments(self.recipe, self.plan, self.folder),
            train_dataset=packs_dataset(prepared.train, _packs(prepared.train, prepared.packs)),
            eval_dataset=held_out,
            processing_class=self.tokenizer,
            callbacks=[self.progress],
            folder=self.folder,
            keep=self.recipe.train.keep,
            stop=self.stop,
            origins=lambda row: origins[row],
        )

    def _before(self, trainer: PackedSFTTrainer) -> dict[str, Any]:
        """Measured once, on the base; a resumed run reads what was written then."""
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
            loss = known[1] if known and known[0] == self.plan.steps else trainer.held_out()[0]
        model.eval()
        answers = (
            evaluate.answer_held_out(model, self.tokenizer, prepared.eval, prepared.end_ids, wanted)
            if wanted.answers
            else []
        )
        samples = evaluate.answer_samples(model, self.tokenizer, prepared.end_ids, wanted)
        for kind, lines in (("answers", answers), ("samples", samples)):
            if lines:
                evaluate.write_lines(self.folder.path / f"{kind}-{when}.jsonl", lines)
        return {"loss": loss, "answers": answers, "samples": samples}


def _packs(rows: Dataset, packs: list[list[int]] | None) -> list[list[int]]:
    return [[row] for row in range(len(rows))] if packs is None else packs
