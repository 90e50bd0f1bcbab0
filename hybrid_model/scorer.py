"""Reward models: a text model under a head of one score a row.

transformers calls them models for sequence classification with one label: ``score`` is applied to the hidden state of a
row's last token that is not padding. Where transformers has no such class of an architecture, its generic one is put
over the architecture's own base model; that is how its own classes are made.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable
from functools import cache
from typing import Any, cast

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.families.family import is_scorer
from hybrid_ft.hybrid_model.families.known import family_of
from hybrid_ft.hybrid_model.lay_flat import lay_flat
from hybrid_ft.hybrid_model.layers.adapter import disguised
from hybrid_ft.hybrid_model.released_files import ReleasedFiles

_ENDING = "ForSequenceClassification"
HEAD = "score.weight"


def as_scorer(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of a reward model over the text model of ``config``. Raises InputError for a
    classifier of more labels."""
    if is_scorer(config) and config.num_labels != 1:
        raise InputError(f"config.json: num_labels is {config.num_labels}; must be 1, a reward model gives one score")
    config = copy.deepcopy(config)
    config.num_labels = 1
    config.architectures = [scorer_class(config).__name__]
    return config


def scorer_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """transformers' class of a reward model of this architecture, its own or the generic one.

    Raises InputError for an architecture over which the generic class cannot be put.
    """
    own = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    causal = family_of(config).language_model(config.model_type)
    return own or _generic(cast(Hashable, type(config)), cast(Hashable, causal))


def refuse_scorer(config: PreTrainedConfig, place: object) -> None:
    """Refuse a reward model where one that writes is needed; ``place`` goes into the message. Raises InputError."""
    if is_scorer(config):
        raise InputError(f"{place}: holds a reward model, which gives scores and writes nothing; name a language model")


def in_plain_transformers(config: PreTrainedConfig) -> bool:
    """Whether ``AutoModelForSequenceClassification`` opens it."""
    return type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


@cache
def _generic(config_class: Any, causal: Any) -> type[PreTrainedModel]:
    parent = next((cls for cls in causal.__mro__[1:] if issubclass(cls, PreTrainedModel)), PreTrainedModel)
    base: Any = MODEL_MAPPING.get(config_class, None)
    if base is None or parent is PreTrainedModel or not issubclass(base, parent):
        raise InputError(
            f"model.path: transformers has no reward model of {causal.__name__.removesuffix('ForCausalLM')} and no base model "
            "of its own to put a head on; take a base of another architecture"
        )
    fields = {"base_model_prefix": parent.base_model_prefix, "__module__": causal.__module__}
    return type(causal.__name__.replace("ForCausalLM", _ENDING), (GenericForSequenceClassification, parent), fields)


def flat_scorer(model: PreTrainedModel) -> PreTrainedModel:
    """A reward model of transformers', laid flat, in place: packed documents, shared prompts, and
    only last tokens scored."""
    lay_flat(model)
    if not hasattr(model, "scores_last_tokens"):
        model.__class__ = _flat(cast(Hashable, type(model)))
    model.generation_config = GenerationConfig()  # what reads it finds nothing
    return model


@cache
def _flat(cls: Any) -> type[PreTrainedModel]:
    class FlatScorer(ReleasedFiles, cls):
        scores_last_tokens = True

        def forward(
            self,
            input_ids: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            position_ids: torch.Tensor | None = None,
            past_key_values: Any = None,
            inputs_embeds: torch.Tensor | None = None,
            labels: torch.Tensor | None = None,
            use_cache: bool | None = None,
            **kwargs: Any,
        ) -> Any:
            """Scores [B, 1] of rows [B, T], each at its last token that is not padding.

            prompt_lengths and prompt_rows, int64 [B]: as the base model takes them; a shared prompt is computed once.
            """
            whole = labels is not None or past_key_values is not None or use_cache or inputs_embeds is not None
            asked = kwargs.get("output_hidden_states") or kwargs.get("output_attentions")
            as_tuple = kwargs.get("return_dict") is False
            if whole or asked or as_tuple or input_ids is None or self.config.pad_token_id is None:
                return super().forward(
                    input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, labels, use_cache, **kwargs
                )
            last = last_tokens(input_ids, attention_mask, self.config.pad_token_id)
            outputs = self.base_model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False,
                keep_positions=last, **kwargs,
            )  # fmt: skip
            return SequenceClassifierOutputWithPast(logits=self.score(outputs.last_hidden_state.squeeze(0)))

    return disguised(FlatScorer, cls)


def last_tokens(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, pad_token_id: int) -> torch.Tensor:
    """bool [B, T]: of each row the last token that is not ``pad_token_id``, which is where
    transformers reads the score."""
    real = input_ids != pad_token_id
    if attention_mask is not None:
        real = real & (attention_mask != 0)
    place = (real * torch.arange(input_ids.shape[1], device=input_ids.device)).argmax(1, keepdim=True)
    return torch.zeros_like(real).scatter_(1, place, True)


def is_of_head(name: str) -> bool:
    """Whether a checkpoint's tensor belongs to the language model's head, which a reward model has not."""
    return re.fullmatch(r"(.*\.)?(lm_head|output)\..*", name) is not None
