"""A tokenizer beside the model that its tokens are for, before any row is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint import load as checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe.schema import Model

_ENVIRONMENT = 3


def check_fits(model: Model, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that makes ids beyond the model's embedding, and weight files that cannot be loaded.

    A model from scratch gets an embedding of the tokenizer's size. A hub that cannot be reached is left for the loading
    of the weights to complain of. Raises InputError, also for a damaged config.
    """
    if model.from_scratch:
        return
    try:
        rows = checkpoint.find_config(model.path, model.revision).vocab_size
    except InputError as error:
        if error.status == _ENVIRONMENT:
            return
        raise
    needed = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if needed <= rows:
        checkpoint.find_config(model.path, model.revision, weights=True)
        return
    has = f"needs an embedding of {needed:,} rows, that of"
    if model.tokenizer:
        raise InputError(
            f"model.tokenizer: {model.tokenizer} {has} model.path {model.path} has {rows:,}; "
            "leave model.tokenizer out to use the model's own"
        )
    raise InputError(
        f"model.path: the tokenizer of {model.path} {has} the model has {rows:,}; "
        "set model.tokenizer to the one that the model was trained with"
    )
