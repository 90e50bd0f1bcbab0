"""Preference tuning: from a recipe of pairs to a model that plain transformers opens. TRL's DPOTrainer trains."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import Progress, TaskID
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig

from hybrid_ft.finetune import models
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.evaluation import answers as evaluate
from hybrid_ft.finetune.machines.hardware import check_hardware
from hybrid_ft.finetune.recipe.schema import Dpo, Recipe
from hybrid_ft.finetune.runs.folder import RunFolder, run_identity
from hybrid_ft.finetune.runs.launcher import agreed
from hybrid_ft.finetune.runs.signals import StopRequest
from hybrid_ft.finetune.training import run as stage
from hybrid_ft.finetune.training.dpo.checks import check_first_loss, check_whole_steps, try_longest
from hybrid_ft.finetune.training.dpo.metrics import ShowPairs, measures
from hybrid_ft.finetune.training.dpo.reference_cache import ReferenceCache, digests_of, reference_key, with_reference
from hybrid_ft.finetune.training.dpo.trainer import PairTrainer
from hybrid_ft.finetune.training.progress import duration, say
from hybrid_ft.finetune.training.stuck_loss import NoSignal
from hybrid_ft.hybrid_model.checkpoint.generation_config import generation_defaults


def run(recipe: Recipe, console: Console, accept_changes: bool = False) -> int:
    """The whole stage. Returns the exit status: 0 done, 75 stopped by a signal and resumable.

    ``accept_changes``: go on with a run though its recipe, data, base or code are not those it began with. Raises
    InputError for what a user can mend; until training begins nothing is left behind then.
    """
    folder, dpo = RunFolder(recipe.output or "runs/dpo"), recipe.dpo
    assert dpo is not None, "a recipe of pairs has a dpo section"
    check_hardware(recipe.model.dtype == "bfloat16", recipe.train.loader_workers)
    recipe = agreed(recipe, models.in_bfloat16(recipe))
    return stage.in_folder(folder, console, lambda stop: _Run(recipe, dpo, console, folder, stop, accept_changes).go())


@dataclass(frozen=True)
class Plan:
    """``per_epoch`` steps; the last step of an epoch may have fewer pairs, so that none is lost."""

    per_epoch: int
    steps: int
    warmup: int

    @classmethod
    def of(cls, recipe: Recipe, pairs: int) -> Plan:
        assert recipe.dpo is not None
        per_epoch = math.ceil(pairs / recipe.dpo.pairs_per_step)
        steps = recipe.train.steps or math.ceil(recipe.train.epochs * per_epoch)
        return cls(per_epoch, steps, math.floor(recipe.train.warmup * steps))


class _Run:
    """One start of a run, new or resumed."""

    def __init__(
        self, recipe: Recipe, dpo: Dpo, console: Console, folder: RunFolder, stop: StopRequest, accept: bool
    ) -> None:
        self.recipe, self.dpo, self.console, self.folder, self.stop = recipe, dpo, console, folder, stop
        self.accept = accept

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
        self.tokenizer.chat_template = self.prepared.chat_template
        check_whole_steps(self.dpo, self.prepared.train, recipe.train.batch_tokens)
        self.splits = {"train": self.prepared.train} | ({"eval": self.prepared.eval} if self.prepared.eval else {})
        self.digests = {name: digests_of(rows) for name, rows in self.splits.items()}
        identity |= _identity(self.digests, self.tokenizer)
        changed = folder.check(identity, self.accept)
        self.plan = Plan.of(recipe, len(self.prepared.train))
        model = models.load_model(recipe, self.tokenizer)
        self.defaults = generation_defaults(model, self.tokenizer, self.prepared.eos_token_ids)
        cache = self._cache(model)
        cache.check()
        saves = stage.check_storage(folder, recipe, model)
        resumed = stage.newest_checkpoint(folder, self.say)
        self._introduce(model, resumed, saves)
        trainer = self._trainer(model)
        # before anything is written: an hour of reference log-probabilities is no use where no step fits
        try_longest(trainer, self.prepared.train)
        stage.begin_or_go_on(folder, recipe, "dpo", identity, changed, self.say)
        self._give_reference(trainer, cache)
        trainer.add_callback(NoSignal(self.say, check_first_loss(trainer, cache.folder)))
        before = self._before(trainer)
        if not stage.train(
            trainer,
            recipe,
            self.plan.steps,
            self.stop,
            self.progress,
            resumed,
            lambda: models.load_model(recipe, self.tokenizer),
        ):
            return 0
        with self.console.status("measuring after the training"):
            after = self._measure(trainer, "after")
        results = stage.export(trainer, recipe, folder, self.tokenizer, self.defaults)
        self._compare(before, after)
        folder.finish(step=self.plan.steps, results=[path.name for path in results])
        self.say(f"done in {duration(time.perf_counter() - began)}")
        for path in results:
            self.say(f"{path.name}: {path}")
        self.say(f"next: hybrid-ft chat {results[-1]}")
        return 0

    def _cache(self, model: torch.nn.Module) -> ReferenceCache:
        place = self.dpo.reference_cache or self.folder.path / "reference"
        pairs = [digest for digests in self.digests.values() for digest in digests]
        dtype = "bfloat16" if models.in_bfloat16(self.recipe) else "float32"
        return ReferenceCache(place, reference_key(model, pairs, self.tokenizer.chat_template, dtype))

    def _introduce(self, model: torch.nn.Module, resumed: Path | None, saves: str) -> None:
        """What will be trained, on what, against what, and where it goes."""
        recipe, dpo, plan, train = self.recipe, self.dpo, self.plan, self.recipe.train
        self.say(f"model     {models.describe_model(recipe, model)}")
        for line in self.prepared.report.summary():
            self.say(f"data      {line}")
        self.say(
            f"steps     {dpo.pairs_per_step} pairs each, in micro-batches of at most {train.batch_tokens:,} tokens; "
            f"{plan.per_epoch:,} steps an epoch"
        )
        self.say(
            f"training  {plan.steps:,} steps ({plan.steps / plan.per_epoch:.2f} epochs), loss {dpo.loss}, beta {dpo.beta:g}, "
            f"learning rate {train.learning_rate:g}, {train.schedule}, {plan.warmup} steps of warm-up"
        )
        self.say(saves)
        if self.folder.processes.count > 1:
            self.say(stage.describe_processes(recipe, self.folder.processes))
        self.say(f"output    {self.folder.path}" + (f", going on from {resumed.name}" if resumed else ""))

    def _trainer(self, model: torch.nn.Module) -> PairTrainer:
        recipe, prepared = self.recipe, self.prepared
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(self.folder.path / "tensorboard")
        origins = prepared.train["origin"]
        self.progress = ShowPairs(self.console, self.folder.metrics)
        trainer = PairTrainer(
            model,
            args=arguments(recipe, self.dpo, self.plan, self.folder),
            train_dataset=prepared.train,
            eval_dataset=prepared.eval,
            processing_class=self.tokenizer,
            callbacks=[self.progress],
            pairs_per_step=self.dpo.pairs_per_step,
            batch_tokens=recipe.train.batch_tokens,
            folder=self.folder,
            keep=recipe.train.keep,
            stop=self.stop,
            origins=lambda row: origins[row],
            arithmetic=partial(models.arithmetic, recipe),
            save_best=recipe.evaluate.load_best,
        )
        if not self.folder.begun and self.folder.processes.main:
            self.folder.checkpoints.rmdir()  # transformers makes it at once
        return trainer

    def _give_reference(self, trainer: PairTrainer, cache: ReferenceCache) -> None:
        """Both splits with the reference's log-probabilities, from the cache or computed now."""
        began, values = time.perf_counter(), dict[bytes, Any]()
        with Progress(console=self.console, transient=True, disable=not self.console.is_terminal) as live:
            for name, rows in self.splits.items():
                task = live.add_task(f"reference, {name}", total=len(rows))
                values |= cache.fill(
                    rows,
                    self.digests[name],
                    self.recipe.train.batch_tokens,
                    trainer.reference,
                    self.say,
                    partial(_advance, live, task),
                    self.folder.processes,
                )
        self.say(f"reference {cache.folder} ({duration(time.perf_counter() - began)})")
        trainer.train_dataset = with_reference(self.prepared.train, self.digests["train"], values)
        if self.prepared.eval is not None:
            trainer.eval_dataset = with_reference(self.prepared.eval, self.digests["eval"], values)

    def _before(self, trainer: PairTrainer) -> dict[str, Any]:
        """Measured once, on the base; a resumed run reads what was written then."""
        if not self.folder.processes.main:
            return {}
        if "before" not in self.folder.record:
            with self.console.status("measuring before the training"):
                before = self._measure(trainer, "before")
            self.folder.note(before={"held_out": before["held_out"]})
            return before
        lines = {kind: self.folder.path / f"{kind}-before.jsonl" for kind in ("answers", "samples")}
        read = {kind: evaluate.read_lines(file) if file.exists() else [] for kind, file in lines.items()}
        return self.folder.record["before"] | read

    def _measure(self, trainer: PairTrainer, when: str) -> dict[str, Any]:
        prepared, wanted = self.prepared, self.recipe.evaluate
        model = trainer.accelerator.unwrap_model(trainer.model)
        known = trainer.held_out_at
        held_out = None
        if prepared.eval is not None:
            held_out = known[1] if known and known[0] == trainer.result_step else trainer.held_out(alone=True)
        answers = []
        with trainer.measuring():
            if wanted.answers and prepared.eval is not None:
                rows = _with_answers(prepared.eval, self.tokenizer)
                answers = evaluate.answer_held_out(model, self.tokenizer, rows, self.defaults.ends, wanted)
            samples = evaluate.answer_samples(model, self.tokenizer, self.defaults.ends, wanted)
        for kind, lines in (("answers", answers), ("samples", samples)):
            if lines:
                evaluate.write_lines(self.folder.path / f"{kind}-{when}.jsonl", lines)
        return {"held_out": held_out, "answers": answers, "samples": samples}

    def _compare(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        if after["held_out"]:
            self.say(f"held-out  before {measures(before['held_out'])}")
            self.say(f"          after  {measures(after['held_out'])}")
        evaluate.show(self.console, before | {"loss": None}, after | {"loss": None})


def arguments(recipe: Recipe, dpo: Dpo, plan: Plan, folder: RunFolder) -> DPOConfig:
    with warnings.catch_warnings():
        # the name that transformers 5.20 knows; 5.23 has a new one for it
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        return DPOConfig(
            **stage.arguments(recipe, plan.steps, plan.warmup, folder),
            loss_type=[dpo.loss],
            beta=dpo.beta,
            label_smoothing=dpo.label_smoothing,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=dpo.pairs_per_step,
            gradient_accumulation_steps=1,
        )


def _advance(live: Progress, task: TaskID, done: int, total: int) -> None:
    live.update(task, completed=done)


def _with_answers(pairs: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """``answer``: the text of the chosen answers, which the model's own are compared with."""
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in pairs["chosen_ids"]]
    return pairs.add_column("answer", texts)


def _identity(digests: dict[str, list[bytes]], tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What the recipe's files became: the tokenizer with its template, and the tokens of every pair in order."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    rows = b"|".join(b"".join(digests[name]) for name in sorted(digests))
    return {
        "tokenizer": "sha256:" + hashlib.sha256(f"{words}\n{tokenizer.chat_template}".encode()).hexdigest(),
        "rows": "sha256:" + hashlib.sha256(rows).hexdigest(),
    }
