"""A recipe's tasks before, on the way and after the training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hybrid_ft.finetune.evaluation import hard_rows, kept_answers
from hybrid_ft.finetune.evaluation.files import HARD_ROWS
from hybrid_ft.finetune.evaluation.suite import Suite
from hybrid_ft.finetune.runs.checkpoints import step_of
from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.runs.signals import Stopped
from hybrid_ft.finetune.training import seams
from hybrid_ft.finetune.training.trainer import LOWEST_LOSS, RunTrainer

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.evaluation.scoring import Scored
    from hybrid_ft.finetune.recipe import schema
    from hybrid_ft.finetune.recipe.schema import Recipe
    from hybrid_ft.finetune.runs.folder import RunFolder


class TasksOnTheWay(TrainerCallback):
    """To be added after the trainer's own callbacks. A stop leaves a measure unfinished; the resumed run ends it before
    its first step."""

    def __init__(self, trainer: RunTrainer, suite: Suite, wanted: schema.Suite) -> None:
        self.trainer, self.suite, self.wanted = trainer, suite, wanted

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step and self._due(state) and not self._measure(state):
            raise Stopped

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._due(state) and not self.trainer.stop.agreed and not self._measure(state):
            control.should_save = control.should_training_stop = True

    def _due(self, state: TrainerState) -> bool:
        assert self.wanted.every
        last = bool(self.wanted.best) and state.global_step == state.max_steps
        return last or state.global_step % self.wanted.every == 0

    def _measure(self, state: TrainerState) -> bool:
        """Whether it was not stopped."""
        trainer, suite = self.trainer, self.suite
        new = not trainer.processes.of_main(suite.done(state.global_step))
        found = measured(trainer, suite, state.global_step, trainer.processes)
        if found is None:
            trainer.stop.agreed = True
            return False
        control = trainer.control
        if self.wanted.best:
            trainer.note_best(suite.badness(found, self.wanted.best))
        # logging takes the step's own line away, which must end where a checkpoint does
        due = control.should_log or control.should_save
        if new:
            trainer.log(dict(suite.scores(found)))
        control.should_log = due
        return True


def suite_of(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: RunFolder) -> Suite | None:
    """The recipe's tasks with their rows. Raises InputError for what cannot be asked."""
    wanted = recipe.evaluate.suite
    return Suite.of(wanted, tokenizer, folder.path) if wanted else None


def identity(recipe: Recipe, suite: Suite | None) -> dict[str, str]:
    """The tasks' rows, where they choose the result."""
    wanted = recipe.evaluate.suite
    return {"suite": suite.digest()} if suite and wanted and wanted.best else {}


def with_tasks(trainer: RunTrainer, suite: Suite | None, wanted: schema.Suite | None) -> RunTrainer:
    """The trainer, which measures on the way where that is asked for."""
    if suite and wanted and wanted.every:
        trainer.add_callback(TasksOnTheWay(trainer, suite, wanted))
    return trainer


def before(trainer: RunTrainer, suite: Suite | None, resumed: Path | None, sharded: bool | str) -> list[Scored] | None:
    """The base's answers, from what is kept or made now; all processes help where each is to hold the whole model."""
    if suite is None:
        return None
    if trainer.processes.main:
        suite.forget_after(step_of(resumed) if resumed else 0)
    trainer.processes.wait()
    if sharded and not trainer.processes.main:
        return None
    return measured(trainer, suite, 0, Processes() if sharded else trainer.processes)


def after(trainer: RunTrainer, suite: Suite | None) -> list[Scored] | None:
    """The answers of the weights that are the result."""
    if suite is None:
        return None
    assert trainer.result_step is not None
    return measured(trainer, suite, trainer.result_step)


def chosen_by(recipe: Recipe) -> str | None:
    """What the result's checkpoint is the best of; None: it is the last."""
    suite = recipe.evaluate.suite
    if recipe.evaluate.load_best:
        return LOWEST_LOSS
    return f"best score in {suite.best}" if suite and suite.best else None


def find_hard_rows(trainer: RunTrainer, prepared: Any, tokenizer: PreTrainedTokenizerBase, seed: int) -> str:
    """Keep the rows of highest loss in the run's folder, and say which they are."""
    model = seams.plain_model(trainer.accelerator.unwrap_model(trainer.model))
    splits = {"training": prepared.train} | ({"held-out": prepared.eval} if prepared.eval is not None else {})
    tokens = int(hard_rows.SHARE * trainer.state.num_input_tokens_seen)
    with trainer.measuring():
        found = hard_rows.hard_rows(model, tokenizer, splits, tokens, seed)
    kept_answers.write_lines(trainer.folder.path / HARD_ROWS, found.rows)
    return found.summary()


def measured(trainer: RunTrainer, suite: Suite, step: int, processes: Processes | None = None) -> list[Scored] | None:
    """The tasks' answers by the weights that the model has now, in the arithmetic of the training."""
    model = seams.plain_model(trainer.accelerator.unwrap_model(trainer.model))
    with trainer.measuring(), trainer.watchdog.paused():
        return suite.measure(model, step, processes, lambda: trainer.stop.now)
