"""A recipe's model on the meta device: shapes and dtypes without memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from hybrid_ft.hybrid_model.adapters import add_lora
from hybrid_ft.hybrid_model.checkpoint.adapter_files import check_adapter, read_adapter
from hybrid_ft.hybrid_model.checkpoint.config import find_config, find_folder
from hybrid_ft.hybrid_model.checkpoint.new_tokens import resize
from hybrid_ft.hybrid_model.scorer import as_scorer, refuse_scorer, scorer_class

if TYPE_CHECKING:
    from peft import PeftModel

    from hybrid_ft.finetune.recipe.schema import Recipe


def empty_model(recipe: Recipe, bfloat16: bool) -> PreTrainedModel | PeftModel:
    """transformers' own class for the recipe's base, with the adapters that the recipe asks for.

    bfloat16: the run's arithmetic. Frozen weights are kept in it, trained ones in float32, as the run does; with
    adamw_bf16 all are.
    Raises InputError for a base whose config cannot be found or read.
    """
    config = find_config(recipe.model.path, recipe.model.revision)
    lora = recipe.model.lora
    small = bool(lora) or recipe.train.optimizer == "adamw_bf16"
    with torch.device("meta"):
        dtype = torch.bfloat16 if bfloat16 and small else torch.float32
        if recipe.reward is not None:
            config = as_scorer(config)
            model = scorer_class(config)._from_config(config, dtype=dtype)
        else:
            refuse_scorer(config, f"model.path: {recipe.model.path}")
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        if recipe.model.adapter and not recipe.model.merge_adapter:
            folder = find_folder(recipe.model.adapter, weights=True)
            adapter = read_adapter(folder)
            resize(model, check_adapter(folder, adapter, config))
            return get_peft_model(model, adapter.config)
        return add_lora(model, **lora.adapters | {"init": "default"}) if lora else model
