"""One run, whatever its stage: check, prepare, load, begin, measure, train, measure, export, finish."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from peft.helpers import disable_input_dtype_casting
from transformers import TrainerState, set_seed

from hybrid_ft.errors import STORAGE, InputError
from hybrid_ft.finetune import models
from hybrid_ft.finetune.data.tokens.arguments import save_arguments
from hybrid_ft.finetune.evaluation import answers
from hybrid_ft.finetune.machines.hardware import check_hardware
from hybrid_ft.finetune.mirror.mirror import Mirror, mirrored
from hybrid_ft.finetune.reports.page import report_at_end
from hybrid_ft.finetune.runs import checkpoints, device
from hybrid_ft.finetune.runs.console import duration, say
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.identity import run_identity, tokenizer_digest
from hybrid_ft.finetune.runs.launcher import agreed
from hybrid_ft.finetune.runs.session import begin_or_go_on, check_storage, in_folder, newest_checkpoint
from hybrid_ft.finetune.runs.team import Team
from hybrid_ft.finetune.training import ends, fsdp, seams, tasks
from hybrid_ft.finetune.training.memory_check import held_line, kept_on_a_cpu, memory_line
from hybrid_ft.finetune.training.own_tokens import check_heads
from hybrid_ft.finetune.training.trainer import STATE
from hybrid_ft.hybrid_model.checkpoint.generation_config import GenerationDefaults, generation_defaults
from hybrid_ft.hybrid_model.gpu_trust import check_gpu
from hybrid_ft.hybrid_model.selective_checkpointing import leave_out, offload_inputs

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.evaluation.suite import Suite
    from hybrid_ft.finetune.recipe.schema import Recipe
    from hybrid_ft.finetune.runs.signals import StopRequest
    from hybrid_ft.finetune.training.plan import Plan
    from hybrid_ft.finetune.training.progress import ShowProgress
    from hybrid_ft.finetune.training.trainer import RunTrainer


class Prepared(Protocol):
    """A stage's rows. ``train`` has a column ``origin`` (``file:line``); ``eos_token_ids`` end an assistant's turn; what
    ``report.summary()`` says is shown, and kept with ``report.as_dict()``."""

    @property
    def train(self) -> Dataset: ...
    @property
    def eval(self) -> Dataset | None: ...
    @property
    def report(self) -> Any: ...
    @property
    def eos_token_ids(self) -> list[int]: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def template_arguments(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Start:
    """One start of a run, new or resumed: what stays the same from its rows to its result."""

    recipe: Recipe
    folder: RunFolder
    console: Console
    stop: StopRequest
    tokenizer: PreTrainedTokenizerBase
    prepared: Any
    plan: Plan
    suite: Suite | None = None
    mirror: Mirror | None = None
    team: Team = field(default_factory=Team)
    of_main: bool = False

    def say(self, text: str) -> None:
        say(self.console, text)

    def of_trainer(self, progress: ShowProgress) -> dict[str, Any]:
        """What ``RunTrainer`` and TRL's trainers get in any stage."""
        origins = self.prepared.train["origin"]
        return {
            "processing_class": self.tokenizer,
            "callbacks": [progress],
            "folder": self.folder,
            "keep": self.recipe.train.keep,
            "stop": self.stop,
            "origins": lambda row: origins[row],
            "arithmetic": partial(models.arithmetic, self.recipe),
            "best_of": tasks.chosen_by(self.recipe),
            "loraplus_ratio": self.recipe.train.loraplus_ratio,
            "mirror": self.mirror,
            "optimizer": self.recipe.train.optimizer,
            "team": self.team,
        }


@dataclass(frozen=True)
class Stage:
    """What one kind of training has of its own. Everything else of a run is ``run``.

    name       of the command, and in ``run.json``
    prepare    recipe, tokenizer -> the rows; raises InputError for data that cannot be used
    identity   rows -> their digests, by the names under which ``run.json`` keeps them
    plan       recipe, rows, number of processes -> the steps
    describe   start -> a line on how the rows fall into steps, and what is minimised (may be empty)
    progress   console, file of metrics -> the callback that shows and keeps what is measured
    trainer    start, model, progress -> the trainer; nothing is written before ``begin``
    trial      start, trainer: raises InputError for what cannot work, before anything is written
    ready      start, trainer, what ``trial`` gave: what the run needs before the first measure; it has begun
    questions  rows, tokenizer -> held-out rows with ``origin``, ``prompt_ids`` and ``answer``, or None
    show       start, before, after: what was measured on the base and on the result
    of_main    whether process 0 alone needs the weights before the first step
    """

    name: str
    prepare: Callable[[Recipe, PreTrainedTokenizerBase], Prepared]
    identity: Callable[[Any], dict[str, str]]
    plan: Callable[[Recipe, Any, int], Plan]
    describe: Callable[[Start], tuple[str, str]]
    progress: Callable[[Console, Path], ShowProgress]
    trainer: Callable[[Start, Any, ShowProgress], RunTrainer]
    trial: Callable[[Start, Any], Any]
    ready: Callable[[Start, Any, Any], None]
    questions: Callable[[Any, PreTrainedTokenizerBase], Dataset | None]
    show: Callable[[Start, dict[str, Any], dict[str, Any]], None]
    of_main: bool = False


@dataclass(frozen=True)
class GoOn:
    """How a run that was begun goes on. ``accept``: though its recipe, data, base or code are not those it began with.
    ``extend``: to another number of steps or epochs, also from its end."""

    accept: bool = False
    extend: bool = False


def run(recipe: Recipe, stage: Stage, console: Console, accept_changes: bool = False, extend: bool = False) -> int:
    """The whole run. Returns the exit status: 0 done, 75 stopped by a signal and resumable.

    ``accept_changes`` and ``extend``: as ``GoOn``. Raises InputError for what a user can mend; until training begins
    nothing is left behind then.
    """
    folder = RunFolder(recipe.output or f"runs/{stage.name}")
    check_hardware(recipe.model.dtype == "bfloat16", recipe.train.loader_workers)
    recipe, how = agreed(recipe, models.in_bfloat16(recipe)), GoOn(accept_changes, extend)

    def work(stop: StopRequest) -> int:
        return mirrored(
            recipe.mirror,
            folder,
            partial(say, console),
            lambda mirror: _run(recipe, stage, folder, console, stop, how, mirror),
        )

    return in_folder(folder, console, work)


def _run(
    recipe: Recipe,
    stage: Stage,
    folder: RunFolder,
    console: Console,
    stop: StopRequest,
    how: GoOn,
    mirror: Mirror | None,
) -> int:
    began = time.perf_counter()
    team = Team.of(folder.processes, recipe.train.sequence_parallel)
    identity = run_identity(recipe)
    changed = folder.check(identity, how.accept, how.extend)
    if how.extend and not folder.begun:
        raise InputError(f"--extend: {folder.path} holds no run to go on with; start it without, or name its output")
    if folder.finished and not (how.extend and ends.is_longer(changed)):
        if mirror:
            mirror.end()
        return ends.at_the_end(recipe, folder, console)
    tokenizer = models.load_tokenizer(recipe)
    prepared = stage.prepare(recipe, tokenizer)
    # what the rows were rendered with is what the result answers with
    tokenizer.chat_template = prepared.chat_template
    save_arguments(tokenizer, prepared.template_arguments)
    suite = tasks.suite_of(recipe, tokenizer, folder)
    identity |= {"tokenizer": tokenizer_digest(tokenizer)} | stage.identity(prepared) | tasks.identity(recipe, suite)
    changed = folder.check(identity, how.accept, how.extend)
    plan = stage.plan(recipe, prepared, folder.processes.count)
    ends.check_longer(folder, plan.steps)
    of_main = stage.of_main and fsdp.can_be_sent(recipe, folder.processes.count)
    start = Start(recipe, folder, console, stop, tokenizer, prepared, plan, suite, mirror, team, of_main)
    memory, kept = None, frozenset[int]()
    if device.is_gpu():
        memory, kept = memory_line(recipe, prepared, folder.processes.count, folder.processes.least)
    elif recipe.model.gradient_checkpointing:
        kept = kept_on_a_cpu(recipe)

    model = models.load_model(recipe, tokenizer, weights=folder.processes.main or not start.of_main)
    leave_out(model, kept)
    if recipe.model.gradient_checkpointing == "offload":
        offload_inputs(model)
    check_heads(model.config, team.size)
    defaults = generation_defaults(model, tokenizer, prepared.eos_token_ids)
    saves = check_storage(folder, recipe, model, models.in_bfloat16(recipe))
    resumed = newest_checkpoint(folder, start.say, mirror.fetch if mirror else lambda newest: newest)
    ends.check_goes_on(folder, resumed)
    memory = memory or held_line(model, fsdp.pieces(folder.processes.count, recipe.train.sharded))
    _introduce(stage, start, model, resumed, (memory, saves))
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.path / "tensorboard")
    progress = stage.progress(console, folder.metrics)
    trainer = tasks.with_tasks(stage.trainer(start, model, progress), suite, recipe.evaluate.suite)
    if not folder.begun and folder.processes.main:
        folder.checkpoints.rmdir()  # transformers makes it at once
    with console.status("the GPU's self-test"):
        check_gpu(trainer.model, torch.bfloat16 if models.in_bfloat16(recipe) else torch.float32)
    tried = stage.trial(start, trainer)
    if mirror:
        mirror.claim()
    begin_or_go_on(folder, recipe, stage.name, identity, changed, start.say)
    if folder.record.get("steps") != plan.steps:
        folder.note(steps=plan.steps)
    if mirror:
        mirror.begin(resumed)
    if "data" not in folder.record:
        folder.note(data={"summary": prepared.report.summary(), "account": prepared.report.as_dict()})
    stage.ready(start, trainer, tried)
    asked = tasks.before(trainer, suite, resumed, recipe.train.sharded)
    before = _before(stage, start, trainer, defaults)
    if not _train(start, trainer, progress, resumed):
        return 0
    if (report := trainer.account(prepared.report)) is not None:
        folder.note(data={"summary": report.summary(), "account": report.as_dict()})
        for line in report.summary():
            start.say(f"data      {line}")
    with console.status("measuring after the training"):
        after = _measure(stage, start, trainer, defaults, "after")
        then = tasks.after(trainer, suite)
        if recipe.reward is None:  # such a model has no likelihoods
            hard = tasks.find_hard_rows(trainer, prepared, tokenizer, recipe.train.seed)
            start.say(f"hard rows {hard}")
    results = ends.export(trainer, recipe, folder, tokenizer, defaults, start.say)
    stage.show(start, before, after)
    if suite is not None and asked and then:
        suite.conclude(console, asked, then, [recipe.model.path, *map(str, results[-1:])])
    folder.finish(step=plan.steps, results=[path.name for path in results], held_out=after["held_out"])
    start.say(f"done in {duration(time.perf_counter() - began)}")
    start.say(report_at_end(folder.path))
    ends.show_results(results, model.config, start.say)
    return 0


def _introduce(stage: Stage, start: Start, model: torch.nn.Module, resumed: Path | None, costs: Sequence[str]) -> None:
    """What will be trained, on what, in what portions, and where it goes."""
    recipe, plan, train, processes = start.recipe, start.plan, start.recipe.train, start.folder.processes
    start.say(f"model     {models.describe_model(recipe, model)}")
    for line in start.prepared.report.summary():
        start.say(f"data      {line}")
    portions, aim = stage.describe(start)
    start.say(portions)
    epochs = "" if recipe.data.streaming else f" ({plan.steps / plan.per_epoch:.2f} epochs)"
    start.say(
        f"training  {plan.steps:,} steps{epochs}, {aim}learning rate "
        f"{train.learning_rate:g}, {train.schedule}, {plan.warmup} steps of warm-up"
    )
    for line in costs:
        start.say(line)
    if processes.count > 1:
        divided = f"in {fsdp.pieces(processes.count, train.sharded)} pieces (FSDP2)"
        how = divided if train.sharded else "a copy in each (DDP)"
        start.say(f"processes {processes.count}, the model {how}{start.team.said}")
    start.say(f"output    {start.folder.path}" + (f", going on from {resumed.name}" if resumed else ""))
    if start.mirror:
        start.say(f"mirror    {start.mirror.place.name}")


def _before(stage: Stage, start: Start, trainer: RunTrainer, defaults: GenerationDefaults) -> dict[str, Any]:
    """Measured once, on the base; a resumed run reads what was written then."""
    folder = start.folder
    if not folder.processes.main:
        return {}
    if "before" not in folder.record:
        with start.console.status("measuring before the training"):
            before = _measure(stage, start, trainer, defaults, "before")
        folder.note(before={"held_out": before["held_out"]})
        return before
    lines = {kind: folder.path / f"{kind}-before.jsonl" for kind in ("answers", "samples")}
    read = {kind: answers.read_lines(file) if file.exists() else [] for kind, file in lines.items()}
    return folder.record["before"] | read


def _measure(
    stage: Stage, start: Start, trainer: RunTrainer, defaults: GenerationDefaults, when: str
) -> dict[str, Any]:
    """``held_out``, the trainer's measures or None; ``answers`` and ``samples``, which are also written."""
    wanted, tokenizer = start.recipe.evaluate, start.tokenizer
    model = trainer.accelerator.unwrap_model(trainer.model)
    held_out = trainer.held_out_of_result()
    questions = stage.questions(start.prepared, tokenizer) if wanted.answers else None
    with trainer.measuring():
        answered = (
            [] if questions is None else answers.answer_held_out(model, tokenizer, questions, defaults.ends, wanted)
        )
        samples = answers.answer_samples(model, tokenizer, defaults.ends, wanted)
    for kind, lines in (("answers", answered), ("samples", samples)):
        if lines:
            answers.write_lines(start.folder.path / f"{kind}-{when}.jsonl", lines)
    return {"held_out": held_out, "answers": answered, "samples": samples}


def _train(start: Start, trainer: RunTrainer, progress: ShowProgress, resumed: Path | None) -> bool:
    """The loop, from the beginning or from a checkpoint, to the plan's steps; then the best weights where they are the
    result. Of several processes all but number 0 are done after it: returns whether this one goes on."""
    recipe, folder, processes = start.recipe, start.folder, start.folder.processes
    step = checkpoints.step_of(resumed) if resumed else 0
    folder.forget_metrics_after(step)
    # process 0 may have measured the base, however long that took
    processes.wait()
    if resumed and step >= start.plan.steps:
        # transformers would take one more step
        last = resumed
        processes.part()
        if processes.main:
            trainer.load_weights(last)
            trainer.state = TrainerState.load_from_json(str(last / STATE))
    else:
        if resumed and (processes.main or not start.of_main):
            trainer.load_weights(resumed)
        # whatever was measured before must not move the training: a resumed run does not measure again
        set_seed(recipe.train.seed)
        sharded = recipe.train.sharded and processes.count > 1
        with ExitStack() as around:
            around.callback(progress.close)
            if sharded:
                fsdp.shard(trainer.model, trainer.accelerator, recipe, start.of_main)
                around.enter_context(seams.already_divided(trainer.model, trainer.accelerator))
            around.enter_context(trainer.watchdog.watching(folder.path, processes.rank))
            around.enter_context(start.stop.at_step_ends())
            # PEFT would copy every adapted layer's input to the adapters' float32, which autocast casts back
            around.enter_context(disable_input_dtype_casting(trainer.model, active=models.in_bfloat16(recipe)))
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        last = folder.checkpoints / f"checkpoint-{trainer.state.global_step}"
        processes.part()
        if processes.main and sharded:
            # one process goes on alone: the model once more, whole
            trainer.replace_model(partial(models.load_model, recipe, start.tokenizer))
            trainer.load_weights(last)
    if not processes.main:
        return False
    best = ends.best_checkpoint(trainer, last)
    trainer.result_step = checkpoints.step_of(best or last)
    if best is not None and best != last:
        if wrong := checkpoints.fault(best):
            raise InputError(
                f"{best}: {wrong}; it had the {trainer.best_of}. Restore it, or take the last weights: start again with "
                f"{'evaluate.load_best=false' if recipe.evaluate.load_best else 'evaluate.suite.best=null'} --accept-changes",
                STORAGE,
            )
        start.say(f"result    the weights of {best.name}, with the {trainer.best_of}")
        trainer.load_weights(best)
    return True
