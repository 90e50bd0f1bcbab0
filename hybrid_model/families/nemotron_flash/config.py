"""Nemotron-Flash's config, as its released ``config.json`` has it.

transformers has no such architecture, and the released repository brings code along, which is never run.
"""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

_LAYER_TYPES = {
    "deltanet": "linear_attention",
    "m": "linear_attention",
    "m2": "linear_attention",
    "a": "full_attention",
    "f": "moe",  # what transformers calls a layer that caches nothing
}


@strict
class NemotronFlashConfig(PreTrainedConfig):
    """Fields of the released file; ``kinds`` is its ``layer_types``, in whose place transformers' names stand here.

    Each layer is a delta rule (deltanet), Mamba-2 (m2, m), attention (a), or an MLP alone (f); the first three have an
    MLP as well where intermediate_size is more than 0. sliding_window: how many tokens before its own a query sees,
    except in the layers global_attn_idx. num_memory_tokens: learnt vectors before every document.
    """

    model_type = "nemotron_flash"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]

    vocab_size: int = 65536
    hidden_size: int = 4096
    intermediate_size: int = 14336
    ffn_expand_ratio: float | int | None = None
    mlp_hidden_act: str = "silu"
    num_hidden_layers: int = 32
    layer_types: list[str] | None = None
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    attn_hidden_size: int = -1
    kq_head_dim: int = -1
    v_head_dim: int = -1
    kq_norm: str | None = None
    attention_dropout: float | int = 0.0
    sliding_window: int | None = None
    global_attn_idx: list[int] | None = None
    rope: bool = False
    rope_type: str | None = None
    rope_theta: float | int = 10000.0
    max_position_embeddings: int = 262144
    orig_max_position_embeddings: int | None = None
    mamba_d_state: int = 16
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba2_headdim: int = 64
    num_memory_tokens: int = 0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        known = {
            "mlp_hidden_act": ("silu", "relu2"),
            "kq_norm": (None, "none", "rms"),
            "rope_type": (None, "default", "ntk"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; must be one of {', '.join(map(str, values))}")
        if self.rope_type == "ntk" and not self.orig_max_position_embeddings:
            raise ValueError("orig_max_position_embeddings must be set where rope_type is ntk")
        kinds = self.layer_types or ["deltanet"] * self.num_hidden_layers
        if unknown := set(kinds) - set(_LAYER_TYPES):
            raise ValueError(f"layer_types holds {min(unknown)!r}; must be of {', '.join(_LAYER_TYPES)}")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self.layer_types = [_LAYER_TYPES[kind] for kind in kinds]
        super().__post_init__(**kwargs)
        self.kinds = list(kinds)

    def to_dict(self) -> dict[str, Any]:
        written = super().to_dict()
        written["layer_types"] = written.pop("kinds", written["layer_types"])
        return written

    def heads(self) -> tuple[int, int]:
        """Sizes of a head of queries and keys, and of values."""
        whole = self.attn_hidden_size if self.attn_hidden_size > 0 else self.hidden_size
        size = whole // self.num_attention_heads
        return (self.kq_head_dim if self.kq_head_dim > 0 else size, self.v_head_dim if self.v_head_dim > 0 else size)

    def window(self, layer: int) -> int | None:
        """Tokens that a query of an attention layer sees, its own counted; None for all."""
        if self.sliding_window is None or layer in (self.global_attn_idx or ()):
            return None
        return self.sliding_window + 1

    def mlp_size(self) -> int:
        if self.ffn_expand_ratio is None:
            return self.intermediate_size
        return int(self.ffn_expand_ratio * self.hidden_size) // 128 * 128
