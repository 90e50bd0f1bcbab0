"""Olmo Hybrid under a head of one score a row."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.olmo_hybrid import OlmoHybridConfig
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

from hybrid_ft.hybrid_model.families.olmo_hybrid.model import OlmoHybridModel
from hybrid_ft.hybrid_model.families.olmo_hybrid.names import released_state_dict


class OlmoHybridForSequenceClassification(GenericForSequenceClassification, hf.OlmoHybridPreTrainedModel):
    """transformers' generic class over this project's model, with the files of the released names."""

    _keep_in_fp32_modules_strict: ClassVar[set[str]] = {"A_log", "dt_bias"}

    def __init__(self, config: OlmoHybridConfig) -> None:
        hf.OlmoHybridPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = OlmoHybridModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """transformers' own, with the released checkpoint's tensor names."""
        state_dict = released_state_dict(self.state_dict() if state_dict is None else state_dict, self.config)
        kwargs["save_original_format"] = False
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
