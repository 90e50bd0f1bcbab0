"""The end of a run, and what a finished one still can."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerState

from hybrid_ft.errors import InputError
from hybrid_ft.finetune import models
from hybrid_ft.finetune.runs import checkpoints
from hybrid_ft.finetune.runs.console import say
from hybrid_ft.finetune.runs.export import Exporter, relative_error
from hybrid_ft.finetune.runs.folder import LENGTH
from hybrid_ft.finetune.runs.next_commands import next_commands
from hybrid_ft.finetune.training import seams
from hybrid_ft.hybrid_model import adapter_weights
from hybrid_ft.hybrid_model.checkpoint.generation_config import GenerationDefaults, generation_defaults
from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer
from hybrid_ft.hybrid_model.families.family import is_scorer

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe.schema import Recipe
    from hybrid_ft.finetune.runs.folder import RunFolder
    from hybrid_ft.finetune.training.trainer import RunTrainer

_MERGED = "merged"


def is_longer(changed: Iterable[str]) -> bool:
    """Whether another number of steps or epochs is asked for."""
    return any(key in LENGTH for key in changed)


def check_longer(folder: RunFolder, steps: int) -> None:
    """Refuse an extension of a finished run to ``steps`` that it has taken already. Raises InputError."""
    if folder.finished and steps <= (done := folder.record["finished"]["step"]):
        raise InputError(
            f"--extend: the recipe's {steps:,} steps must be more than the {done:,} that {folder.path} has taken; set "
            "train.steps, or train.epochs where train.steps is null"
        )


def check_goes_on(folder: RunFolder, newest: Path | None) -> None:
    """Refuse to extend a finished run whose last checkpoint is gone: an older one would not be its end."""
    if not folder.finished:
        return
    end = folder.record["finished"]["step"]
    if newest is None or checkpoints.step_of(newest) != end:
        result = folder.path / folder.record["finished"]["results"][-1]
        key = "model.adapter" if result.name == "adapter" else "model.path"
        raise InputError(
            f"--extend: {folder.checkpoints / f'checkpoint-{end}'} is missing or damaged, and with it the optimizer's "
            f"state; restore it, or start a new run from the result: {key}={result}"
        )


def at_the_end(recipe: Recipe, folder: RunFolder, console: Console) -> int:
    """Of a finished run: merge its adapter where the recipe now asks for it; nothing else is left to do. Returns the
    exit status."""
    finished, lora = folder.record["finished"], recipe.model.lora
    if not (lora and lora.merge) or _MERGED in finished["results"]:
        say(console, f"{folder.path}: this run is finished; nothing to do")
        return 0
    folder.processes.part()
    if not folder.processes.main:
        return 0
    place = folder.path / "adapter"
    if not place.is_dir():
        raise InputError(f"{place}: missing, and model.lora.merge: true is to merge it; restore it")
    say(console, f"{folder.path}: this run is finished; its adapter is merged")
    with console.status("merging"):
        tokenizer = load_tokenizer(place)
        model = models.trained_adapter(recipe, place)
        # the adapter's, which has the template's end tokens
        defaults = generation_defaults(model, tokenizer)
        exporter = Exporter(folder.path, tokenizer, defaults, recipe.model.path, recipe.model.revision)
        merged = exporter.whole(adapter_weights.merged(model), _MERGED)
    folder.renew(recipe)
    folder.note(finished=finished | {"results": [*finished["results"], merged.name]})
    show_results([place, merged], model.config, lambda text: say(console, text))
    return 0


def show_results(results: list[Path], config: Any, tell: Callable[[str], None]) -> None:
    """Where they are, and what can be done with the last."""
    for path in results:
        tell(f"{path.name}: {path}")
    for number, line in enumerate(next_commands(results, config.model_type, is_scorer(config))):
        tell(f"{'' if number else 'next':10}{line}")


def best_checkpoint(trainer: RunTrainer, last: Path) -> Path | None:
    """The one that was chosen, as ``last`` knows it."""
    if not trainer.best_of:
        return None
    # a network's file system may show a file that was just renamed as empty
    known = trainer.state.global_step == checkpoints.step_of(last)
    best = (trainer.state if known else TrainerState.load_from_json(str(last / checkpoints.STATE))).best_global_step
    return last.with_name(f"checkpoint-{best}") if best else None


def export(
    trainer: RunTrainer,
    recipe: Recipe,
    folder: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    defaults: GenerationDefaults,
    say: Callable[[str], None],
) -> list[Path]:
    """Every result, verified; the last is the one to talk to."""
    model: Any = seams.without_fused_head(trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False))
    wanted = recipe.model
    exporter = Exporter(folder.path, tokenizer, defaults, wanted.path, wanted.revision, wanted.quantize)
    if not wanted.lora:
        return [exporter.whole(model.to(torch.bfloat16) if models.in_bfloat16(recipe) else model)]
    # an adapter on a base that was merged in memory would have nothing to be opened on
    results = [] if wanted.merge_adapter else [exporter.adapter(model)]
    if wanted.lora.merge:
        if wanted.quantize:
            whole = models.on_whole_base(recipe, tokenizer, model)
            off = relative_error(whole, model)
            say(
                f"merged    onto the base as it was: logits {off:.1%} from those of the training, on its {wanted.quantize} base"
            )
            model = whole
        results.append(exporter.whole(adapter_weights.merged(model), _MERGED))
    return results
