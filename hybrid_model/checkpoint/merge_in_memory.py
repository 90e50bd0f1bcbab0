"""Merging in memory, where a weight lies in several tensors of the base's files."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.adapter_changes import read_changes
from hybrid_ft.hybrid_model.checkpoint.adapter_files import WEIGHTS
from hybrid_ft.hybrid_model.checkpoint.merge_places import parted
from hybrid_ft.hybrid_model.checkpoint.new_tokens import resize
from hybrid_ft.hybrid_model.checkpoint.tensor_files import rounded


@torch.no_grad()
def merge_in_memory(model: PreTrainedModel, folder: Path) -> int:
    """Change ``model`` as the adapter in ``folder`` does; returns how many tensors changed.

    Sums are taken in float32 and rounded once. Raises InputError for an adapter that cannot be merged, before any
    weight changes; also for one that parts the head from the embedding, which its base's files have no place for.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    embedding = next(name for name, each in parameters.items() if each is model.get_input_embeddings().weight)
    tied = bool(model.config.tie_word_embeddings)
    changes = read_changes(folder, shapes, tied, embedding)
    if changes.tied != tied:
        raise parted(folder, model.config)
    summed = [id(parameters[name]) for name, change in changes.of.items() if change.a is not None]
    if len(set(summed)) < len(summed):
        raise InputError(
            f"{folder / WEIGHTS}: adapts one weight in several layers, each in its own way; one merged weight cannot be all of "
            "them"
        )
    resize(model, changes.vocabulary)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, change in changes.of.items():
        parameter = parameters[name]
        merged = change.applied(parameter, 0, parameter.shape[0])
        parameter.copy_(rounded(merged, parameter.dtype, f"{folder}: merged, {name}"))
    return len(changes.of)
