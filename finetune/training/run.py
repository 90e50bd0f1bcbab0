"""One run, whatever its stage: check, prepare, load, begin, measure, train, measure, export, finish."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.helpers import disable_input_dtype_casting
from transformers import TrainerState, set_seed

from hybrid_ft.errors import STORAGE, InputError
from hybrid_ft.finetune import models
from hybrid_ft.finetune.data.tokens.arguments import save_arguments
from hybrid_ft.finetune.evaluation import answers, kept_answers
from hybrid_ft.finetune.machines.hardware import check_hardware
from hybrid_ft.finetune.mirror.mirror import Mirror, mirrored
from hybrid_ft.finetune.reports.cost import cost_at_end
from hybrid_ft.finetune.reports.page import report_at_end
from hybrid_ft.finetune.runs import checkpoints, device, weights
from hybrid_ft.finetune.runs.console import duration, say
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.identity import run_identity, tokenizer_digest
from hybrid_ft.finetune.runs.launcher import agreed, elastic_note
from hybrid_ft.finetune.runs.session import begin_or_go_on, check_storage, in_folder, newest_checkpoint
from hybrid_ft.finetune.runs.team import Team
from hybrid_ft.finetune.training import ends, fsdp, seams, tasks
from hybrid_ft.finetune.training.memory_check import held_line, kept_on_a_cpu, memory_line
from hybrid_ft.finetune.training.own_tokens import check_heads
from hybrid_ft.finetune.training.stage import Stage, Start
from hybrid_ft.hybrid_model.checkpoint.generation_config import GenerationDefaults, generation_defaults
from hybrid_ft.hybrid_model.gpu_trust import check_gpu
from hybrid_ft.hybrid_model.selective_checkpointing import leave_out, offload_inputs

if TYPE_CHECKING:
    from rich.console import Console

    from hybrid_ft.finetune.recipe.schema import Recipe
    from hybrid_ft.finetune.runs.signals import StopRequest
    from hybrid_ft.finetune.training.progress import ShowProgress
    from hybrid_ft.finetune.training.trainer import RunTrainer


@dataclass(frozen=True)
class GoOn:
    """How a run that was begun goes on. ``accept``: though its recipe, data, base or code are not those it began with.
    ``extend``: to another number of steps or epochs, also from its end."""

    accept: bool = False
    extend: bool = False


@dataclass(frozen=True)
class _Asked:
    """What a start was asked for, and where it works."""

    recipe: Recipe
    stage: Stage
    folder: RunFolder
    console: Console
    stop: StopRequest
    how: GoOn
    mirror: Mirror | None


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
            lambda mirror: _run(_Asked(recipe, stage, folder, console, stop, how, mirror)),
        )

    return in_folder(folder, console, work)


def _run(asked_for: _Asked) -> int:
    began = time.perf_counter()
    recipe, stage, folder, how = asked_for.recipe, asked_for.stage, asked_for.folder, asked_for.how
    mirror = asked_for.mirror
    changed = folder.check(run_identity(recipe), how.accept, how.extend)
    if how.extend and not folder.begun:
        raise InputError(f"--extend: {folder.path} holds no run to go on with; start it without, or name its output")
    if folder.finished and not (how.extend and ends.is_longer(changed)):
        if mirror:
            mirror.end()
        return ends.at_the_end(recipe, folder, asked_for.console)
    start, identity, changed = _prepare(asked_for)
    model, memory = _load(start)
    defaults = generation_defaults(model, start.tokenizer, start.prepared.eos_token_ids)
    saves = check_storage(folder, recipe, model, models.in_bfloat16(recipe))
    resumed = newest_checkpoint(folder, start.say, mirror.fetch if mirror else lambda newest: newest)
    ends.check_goes_on(folder, resumed)
    _introduce(stage, start, model, resumed, (memory, saves))
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.path / "tensorboard")
    progress = stage.progress(start.console, folder.metrics)
    trainer = tasks.with_tasks(stage.trainer(start, model, progress), start.suite, recipe.evaluate.suite)
    if not folder.begun and folder.processes.main:
        folder.checkpoints.rmdir()  # transformers makes it at once
    with start.console.status("the GPU's self-test"):
        check_gpu(trainer.model, torch.bfloat16 if models.in_bfloat16(recipe) else torch.float32)
    if not stage.late:
        _divide(start, trainer)
    tried = stage.trial(start, trainer)
    _begin(stage, start, identity, changed, resumed)
    stage.ready(start, trainer, tried)
    with _whole(start, trainer):
        asked = tasks.before(trainer, start.suite, resumed, recipe.train.sharded)
        before = _before(stage, start, trainer, defaults)
    if not _train(start, trainer, progress, resumed):
        return 0
    results = _conclude(stage, start, trainer, defaults, before, asked)
    paid = cost_at_end(folder.path)
    start.say(f"done in {duration(time.perf_counter() - began)}" + (f"; its steps cost {paid}" if paid else ""))
    start.say(report_at_end(folder.path))
    ends.show_results(results, model.config, start.say)
    return 0


def _prepare(asked_for: _Asked) -> tuple[Start, dict[str, Any], list[str]]:
    """Tokenizer, rows, tasks and plan; by what the run is known; what of that has changed since it began."""
    recipe, stage, folder, how = asked_for.recipe, asked_for.stage, asked_for.folder, asked_for.how
    team = Team.of(folder.processes, recipe.train.sequence_parallel)
    tokenizer = models.load_tokenizer(recipe)
    prepared = stage.prepare(recipe, tokenizer)
    # what the rows were rendered with is what the result answers with
    tokenizer.chat_template = prepared.chat_template
    save_arguments(tokenizer, prepared.template_arguments)
    suite = tasks.suite_of(recipe, tokenizer, folder)
    identity = run_identity(recipe) | {"tokenizer": tokenizer_digest(tokenizer)}
    identity |= stage.identity(prepared) | tasks.identity(recipe, suite)
    changed = folder.check(identity, how.accept, how.extend)
    plan = stage.plan(recipe, prepared, folder.processes.count)
    ends.check_longer(folder, plan.steps)
    of_main = fsdp.can_be_sent(recipe, folder.processes.count)
    start = Start(
        recipe,
        folder,
        asked_for.console,
        asked_for.stop,
        tokenizer,
        prepared,
        plan,
        suite,
        asked_for.mirror,
        team,
        of_main,
    )
    return start, identity, changed


def _load(start: Start) -> tuple[Any, str]:
    """The model as it will be trained, and a line on its memory. Raises InputError where a step cannot fit."""
    recipe, processes = start.recipe, start.folder.processes
    memory, kept = None, frozenset[int]()
    if device.is_gpu():
        memory, kept = memory_line(recipe, start.prepared, processes.count, processes.least)
    elif recipe.model.gradient_checkpointing:
        kept = kept_on_a_cpu(recipe)
    model = models.load_model(recipe, start.tokenizer, weights=processes.main or not start.of_main)
    leave_out(model, kept)
    if recipe.model.gradient_checkpointing == "offload":
        offload_inputs(model)
    check_heads(model.config, start.team.size)
    return model, memory or held_line(model, fsdp.pieces(processes.count, recipe.train.sharded), recipe)


def _begin(stage: Stage, start: Start, identity: dict[str, Any], changed: list[str], resumed: Path | None) -> None:
    """From here on there is a run in the folder, with its place on the mirror."""
    folder, report = start.folder, start.prepared.report
    if start.mirror:
        start.mirror.claim()
    begin_or_go_on(folder, start.recipe, stage.name, identity, changed, start.say)
    if folder.record.get("steps") != start.plan.steps:
        folder.note(steps=start.plan.steps)
    if start.mirror:
        start.mirror.begin(resumed)
    if "data" not in folder.record:
        folder.note(data={"summary": report.summary(), "account": report.as_dict()})


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
        start.say(f"processes {processes.count}, the model {how}{start.team.said}{elastic_note(start.folder.path)}")
    start.say(f"output    {start.folder.path}" + (f", going on from {resumed.name}" if resumed else ""))
    if start.mirror:
        start.say(f"mirror    {start.mirror.place.name}")


def _divide(start: Start, trainer: RunTrainer) -> None:
    """Once, where the model is to lie in pieces; from here on it computes only where all processes do."""
    if start.recipe.train.sharded and start.folder.processes.count > 1 and not weights.is_divided(trainer.model):
        fsdp.shard(trainer.model, trainer.accelerator, start.recipe, start.of_main)


def _whole(start: Start, trainer: RunTrainer) -> AbstractContextManager[None]:
    """Inside the block process 0 can measure the base alone: it reads it once more where it lies in pieces, and
    something is still to be measured."""
    measured = "before" in start.folder.record and (start.suite is None or start.suite.done(0))
    if measured or not start.folder.processes.main or not weights.is_divided(trainer.model):
        return nullcontext()
    return trainer.whole_beside(partial(models.load_model, start.recipe, start.tokenizer))


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
    read = {kind: kept_answers.read_lines(file) if file.exists() else [] for kind, file in lines.items()}
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
            kept_answers.write_lines(start.folder.path / f"{kind}-{when}.jsonl", lines)
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
            if weights.is_divided(trainer.model):
                trainer.replace_model(partial(models.load_model, recipe, start.tokenizer))
            trainer.load_weights(last)
            trainer.state = TrainerState.load_from_json(str(last / checkpoints.STATE))
    else:
        if resumed and (processes.main or not start.of_main or weights.is_divided(trainer.model)):
            trainer.load_weights(resumed)
        # whatever was measured before must not move the training: a resumed run does not measure again
        set_seed(recipe.train.seed)
        with ExitStack() as around:
            around.callback(progress.close)
            _divide(start, trainer)
            sharded = weights.is_divided(trainer.model)
            if sharded:
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


def _conclude(
    stage: Stage,
    start: Start,
    trainer: RunTrainer,
    defaults: GenerationDefaults,
    before: dict[str, Any],
    asked: Any,
) -> list[Path]:
    """Measure the result beside the base, export it, and write that the run is finished.
    Returns the exported folders."""
    recipe, folder, suite = start.recipe, start.folder, start.suite
    if (report := trainer.account(start.prepared.report)) is not None:
        folder.note(data={"summary": report.summary(), "account": report.as_dict()})
        for line in report.summary():
            start.say(f"data      {line}")
    with start.console.status("measuring after the training"):
        after = _measure(stage, start, trainer, defaults, "after")
        then = tasks.after(trainer, suite)
        if recipe.reward is None:  # such a model has no likelihoods
            hard = tasks.find_hard_rows(trainer, start.prepared, start.tokenizer, recipe.train.seed)
            start.say(f"hard rows {hard}")
    results = ends.export(trainer, recipe, folder, start.tokenizer, defaults, start.say)
    stage.show(start, before, after)
    if suite is not None and asked and then:
        suite.conclude(start.console, asked, then, [recipe.model.path, *map(str, results[-1:])])
    folder.finish(step=start.plan.steps, results=[path.name for path in results], held_out=after["held_out"])
    return results
