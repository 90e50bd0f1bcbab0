"""Checks that a tokenizer fits the model's embedding, before any row is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.hybrid_model.adapters import target_modules
from hybrid_ft.hybrid_model.checkpoint.adapter_files import vocabulary_of
from hybrid_ft.hybrid_model.checkpoint.config import find_config, find_folder
from hybrid_ft.hybrid_model.checkpoint.tokenizer import check_vocabulary
from hybrid_ft.hybrid_model.named_modules import whole_modules

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe.model_section import Lora, Model


def check_modules(config: PreTrainedConfig, lora: Lora) -> None:
    """Refuse LoRA on layers and modules that a model of this config has not, or that cannot be trained so."""
    pattern = target_modules(lora.targets, config, lora.layers, lora.modules)
    if lora.modules_to_save:
        whole_modules(lora.modules_to_save, config, pattern)


def check_fits(model: Model, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that makes ids beyond the model's embedding, LoRA on layers that the model has not, and weight
    files that cannot be loaded.

    A model from scratch gets an embedding of the tokenizer's size. A hub that cannot be reached is left for the loading
    of the weights to complain of. Raises InputError, also for a damaged config.
    """
    if model.from_scratch:
        return
    try:
        config = find_config(model.path, model.revision)
    except InputError as error:
        if error.status == ENVIRONMENT:
            return
        raise
    if model.lora:
        check_modules(config, model.lora)
    if model.tokenizer:
        name = f"model.tokenizer: {model.tokenizer}"
        fix = "leave model.tokenizer out to use the tokenizer beside the model"
    else:
        name = f"model.path: the tokenizer of {model.path}"
        fix = "set model.tokenizer to the one that the model was trained with"
    if model.adapter:
        config.vocab_size = max(config.vocab_size, vocabulary_of(find_folder(model.adapter, weights=True)))
    check_vocabulary(tokenizer, config, name, fix, {*model.new_tokens, *model.new_special_tokens})
    find_config(model.path, model.revision, weights=True)
