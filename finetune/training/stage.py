"""What one kind of training has of its own, and one start of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hybrid_ft.finetune import models
from hybrid_ft.finetune.runs.console import say
from hybrid_ft.finetune.runs.team import Team
from hybrid_ft.finetune.training import tasks

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.evaluation.suite import Suite
    from hybrid_ft.finetune.mirror.mirror import Mirror
    from hybrid_ft.finetune.recipe.schema import Recipe
    from hybrid_ft.finetune.runs.folder import RunFolder
    from hybrid_ft.finetune.runs.signals import StopRequest
    from hybrid_ft.finetune.training.plan import Plan
    from hybrid_ft.finetune.training.progress import ShowProgress
    from hybrid_ft.finetune.training.trainer import RunTrainer


class Prepared(Protocol):
    """A stage's rows. ``train`` has a column ``origin`` (``file:line``); ``eos_token_ids`` end an assistant's turn;
    what ``report.summary()`` says is shown, and kept with ``report.as_dict()``."""

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
    """whether process 0 alone has the weights until the model is divided"""

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
    trial      start, trainer: raises InputError for what cannot work, before anything is written; with a model in
               pieces if it is to be trained so, all processes together
    ready      start, trainer, what ``trial`` gave: what the run needs before the first measure; it has begun
    questions  rows, tokenizer -> held-out rows with ``origin``, ``prompt_ids`` and ``answer``, or None
    show       start, before, after: what was measured on the base and on the result
    late       whether a model is divided only after process 0 has measured the base: there is no trial, and no
               reference
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
    late: bool = False
