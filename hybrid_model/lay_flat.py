"""A model of transformers', laid flat: the same weights, names and conversions, other forwards.

``lay_flat`` swaps the classes of a built model's mixers, decoder layers and base model. Parameters, module names, FSDP
wrapping, device maps and saving stay transformers'. The base model becomes the door: it takes batches in every form
that ``read_batch`` reads, and its layers see one flat row. A call with a cache, as ``generate``
makes, runs as transformers wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType, MethodType
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.door.current import current_layout, laid_out
from hybrid_ft.hybrid_model.door.layout import SequenceLayout
from hybrid_ft.hybrid_model.families.family import Family
from hybrid_ft.hybrid_model.families.known import family_of
from hybrid_ft.hybrid_model.flat_language_model import flat_language_model
from hybrid_ft.hybrid_model.flat_model import flat_model
from hybrid_ft.hybrid_model.layers import flat_attention
from hybrid_ft.hybrid_model.layers.adapter import disguised, is_mixer, segment_wise
from hybrid_ft.hybrid_model.layers.pickled import let_pickle
from hybrid_ft.hybrid_model.remembering_model import remembering_model

_OF_CACHE = ("past_key_values", "cache", "layer_past", "use_cache")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def lay_flat(model: PreTrainedModel) -> PreTrainedModel:
    """Make a causal language model of a known family exact on packed batches and shared prompts, in place.

    Raises InputError for an architecture that is not known, for a multimodal model around a text model, and for one
    that transformers has built from a config it misreads.
    """
    family = family_of(model.config)
    base = model.base_model
    base_class: Any = type(base)
    model_class: Any = type(model)
    if is_flat(model):
        return model
    if (fault := family.misread(model.config)) is not None:
        raise InputError(f"{type(model).__name__}: {fault}")
    if not hasattr(base, "layers"):
        raise InputError(
            f"{type(model).__name__} holds its text model beside others; open the text model alone, with "
            f"{family.architecture}.from_pretrained or hybrid_ft.load"
        )
    if family.remembers:
        _swap(base, remembering_model(base_class))
    else:
        _swap(base, flat_model(base_class, family))
        model.set_attn_implementation(flat_attention.NAME)
    if isinstance(model, GenerationMixin):
        flat = flat_language_model(model_class, family)
        let_pickle(flat, _flat_again)
        _swap(model, flat)
    swap_classes(base, family)
    return model


def _flat_again(model: PreTrainedModel, state: Any) -> None:
    """What is read from a pickle."""
    model.__setstate__(state)
    lay_flat(model)


def swap_classes(root: nn.Module, family: Family) -> None:
    """Give the modules from ``root`` down, which may be one layer alone, their flat classes."""
    for module in list(root.modules()):
        cls: Any = type(module)
        if (own := family.own.get(cls.__name__)) is not None:
            _swap(module, own(cls))
        elif isinstance(module, PreTrainedModel):
            continue
        elif isinstance(module, GradientCheckpointingLayer):
            _swap(module, _flat_layer(cls))
        elif is_mixer(module):
            _swap(module, segment_wise(cls, family.forks))


def _swap(module: nn.Module, cls: Any) -> None:
    module.__class__ = cls
    # where accelerate has put a forward of its own, it calls the one that it has found
    if "_old_forward" in vars(module):
        vars(module)["_old_forward"] = MethodType(cls.forward, module)


def is_flat(model: nn.Module) -> bool:
    """Whether ``lay_flat`` has been here."""
    return getattr(type(getattr(model, "base_model", model)), "laid_flat", False)


@cache
def _flat_layer(cls: type[nn.Module]) -> type[nn.Module]:
    """A decoder layer that holds on to the layout it was called with, for when backward computes it again, and to its
    cache where no backward will."""

    class FlatLayer(cls):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if self.gradient_checkpointing and self.training and not torch.is_grad_enabled():
                # under these names checkpointing would drop it
                kwargs["kept"] = {name: kwargs.pop(name) for name in _OF_CACHE if name in kwargs}
            return super().__call__(*args, layout=kwargs.pop("layout", current_layout()), **kwargs)

        def forward(
            self, *args: Any, layout: SequenceLayout | None = None, kept: Mapping[str, Any] = _NOTHING, **kwargs: Any
        ) -> Any:
            with laid_out(layout):
                return super().forward(*args, **kept, **kwargs)

    return disguised(FlatLayer, cls)
