"""What a run leaves: the model, an adapter, both merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hybrid_ft.finetune import models
from hybrid_ft.finetune.runs.export import Exporter, relative_error
from hybrid_ft.finetune.training import seams
from hybrid_ft.hybrid_model.adapter_weights import merged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe.schema import Recipe
    from hybrid_ft.finetune.runs.folder import RunFolder
    from hybrid_ft.finetune.training.trainer import RunTrainer
    from hybrid_ft.hybrid_model.checkpoint.generation_config import GenerationDefaults


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
        results.append(exporter.whole(merged(model), "merged"))
    return results
