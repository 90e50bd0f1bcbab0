"""Samba's config, as the ``fla`` package has it; no weights were ever released."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class SambaConfig(PreTrainedConfig):
    """Fields of fla's file. ``attn``: layers of attention, their heads, window and rope; the others are Mamba."""

    model_type = "samba"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]

    vocab_size: int = 32000
    hidden_size: int = 2304
    num_hidden_layers: int = 18
    state_size: int = 16
    expand: int = 2
    conv_kernel: int = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "swish"
    hidden_ratio: int | float | None = 4
    norm_eps: float = 1e-5
    time_step_rank: int | str = "auto"
    time_step_scale: float | int = 1.0
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_init_scheme: str = "random"
    time_step_floor: float = 1e-4
    max_position_embeddings: int = 2048
    attn: dict[str, Any] | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    use_mambapy: ClassVar = False
    use_associative_scan: ClassVar = False
    attention_dropout: ClassVar = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.attn is None:
            self.attn = {"layers": list(range(1, self.num_hidden_layers, 2)), "num_heads": self.hidden_size // 128}
        self.attn = {"num_kv_heads": None, "window_size": 2048, "rope_theta": 10000.0, "qkv_bias": False} | self.attn
        if self.attn["qkv_bias"]:
            raise ValueError("attn.qkv_bias is true; must be false")
        if self.hidden_act not in ("swish", "silu"):
            raise ValueError(f"hidden_act is {self.hidden_act!r}; must be swish or silu")
        if self.time_step_rank == "auto":
            self.time_step_rank = math.ceil(self.hidden_size / 16)
        kwargs.pop("intermediate_size", None)
        super().__post_init__(**kwargs)

    @property
    def intermediate_size(self) -> int:
        """Channels of a Mamba mixer."""
        return int(self.expand * self.hidden_size)

    @property
    def mlp_size(self) -> int:
        return 256 * math.ceil(int(self.hidden_size * (self.hidden_ratio or 4) * 2 / 3) / 256)

    @property
    def layer_types(self) -> list[str]:
        """By their caches: a window is a mask of all of a layer's keys."""
        assert self.attn is not None
        attention = set(self.attn["layers"])
        return ["full_attention" if i in attention else "linear_attention" for i in range(self.num_hidden_layers)]

    @property
    def num_attention_heads(self) -> int:
        assert self.attn is not None
        return self.attn["num_heads"]

    @property
    def num_key_value_heads(self) -> int:
        assert self.attn is not None
        return self.attn["num_kv_heads"] or self.attn["num_heads"]

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def sliding_window(self) -> int | None:
        """Tokens that a query sees, its own counted."""
        assert self.attn is not None
        return self.attn["window_size"]
