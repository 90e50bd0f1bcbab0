"""The stages that train, by the names of their commands."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hybrid_ft.finetune.recipe.stage_kinds import STAGE_KINDS
from hybrid_ft.finetune.training import run as training
from hybrid_ft.finetune.training.stage import Stage

if TYPE_CHECKING:
    from rich.console import Console

    from hybrid_ft.finetune.recipe.schema import Recipe


def run(kind: str, recipe: Recipe, console: Console, accept_changes: bool = False, extend: bool = False) -> int:
    """As ``training.run.run``; ``kind``: sft, or the recipe's section of a preference stage."""
    return training.run(recipe, stage_of(kind), console, accept_changes, extend)


def stage_of(kind: str) -> Stage:
    """A stage's record; TRL's trainer of that stage alone is imported."""
    module, _, name = STAGE_KINDS[kind].record.partition(":")
    stage: Stage = getattr(import_module(module), name)
    return stage
