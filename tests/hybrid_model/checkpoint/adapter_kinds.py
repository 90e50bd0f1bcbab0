"""Adapters of the kinds that PEFT writes, trained by a random step, saved as a user's script saves them."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import OlmoHybridForCausalLM

ATTENTION = ["self_attn.q_proj", "self_attn.o_proj"]
EVERY = ["q_proj", "k_proj", "v_proj", "g_proj", "o_proj", "a_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": EVERY},
    "one kind of layer": {"target_modules": ATTENTION},
    "rslora": {"target_modules": EVERY, "use_rslora": True, "r": 3},
    "dora": {"target_modules": EVERY, "use_dora": True},
    "patterns": {"target_modules": EVERY, "rank_pattern": {"down_proj": 5}, "alpha_pattern": {"^model.layers.0.mlp.up_proj": 3}},
    "layers": {"target_modules": EVERY, "layers_to_transform": [1]},
    "modules to save": {"target_modules": ATTENTION, "modules_to_save": ["conv1d", "norm", "o_norm", "lm_head"]},
    "a whole mixer": {"target_modules": ["up_proj"], "modules_to_save": ["linear_attn"]},
    "embeddings": {"target_modules": [*ATTENTION, "embed_tokens", "lm_head"]},
    "dora on the head": {"target_modules": ["lm_head"], "use_dora": True},
    "resized": {"target_modules": EVERY, "resize": 80},
    "resized and adapted": {"target_modules": ["embed_tokens", "lm_head", "v_proj"], "resize": 75},
    "token rows": {"target_modules": ATTENTION, "trainable_token_indices": [5, 60]},
    "token rows of both": {"target_modules": ATTENTION, "trainable_token_indices": {"embed_tokens": [5, 60], "lm_head": [7]}},
}  # fmt: skip
TIED: dict[str, dict[str, Any]] = {
    "lora": KINDS["lora"],
    "resized": KINDS["resized"],
    "token rows": KINDS["token rows"],
    "both apart": {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]},
    "both by lora": KINDS["embeddings"],
    "kept tied": {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "kept tied, both named": {
        "target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True,
    },
    "grown and kept tied": {
        "target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True,
        "resize": 75,
    },
}  # fmt: skip


def make_adapter(base: Path, folder: Path, resize: int | None = None, seed: int = 0, **settings: Any) -> Any:
    """The adapted model in plain transformers, in eval mode; its adapter is in ``folder``."""
    model = OlmoHybridForCausalLM.from_pretrained(base, dtype=torch.float32)
    if resize:
        model.resize_token_embeddings(resize, mean_resizing=False)
    adapted = get_peft_model(model, LoraConfig(**{"r": 2, "lora_alpha": 6, "task_type": "CAUSAL_LM", **settings}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder)
    return adapted.eval()
