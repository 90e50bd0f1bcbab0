"""What is exported, and what became of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hybrid_ft.hybrid_model.checkpoint.config import FOREIGN, json_object
from hybrid_ft.hybrid_model.checkpoint.load import open_plain
from hybrid_ft.hybrid_model.checkpoint.torch_functions import torch_functions

_SMALL = re.compile(
    r"generation_config\.json|tokenizer(_config)?\.json|tokenizer\.model|(special_tokens_map|added_tokens|vocab)\.json"
    r"|merges\.txt|chat_template\.(jinja|json)|(video_)?(pre)?processor_config\.json|(LICENSE|NOTICE)(\.txt|\.md)?"
)


@dataclass(frozen=True)
class Source:
    """What is exported: a checkpoint's folder and its config."""

    folder: Path
    config: Any

    def copy_small_files(self, out: Path) -> None:
        """Tokenizer, template, generation defaults and licence; no code and no weights."""
        for path in sorted(self.folder.iterdir()):
            if path.is_file() and _SMALL.fullmatch(path.name):
                shutil.copyfile(path, out / path.name)

    def opened(self, dtype: torch.dtype | None = None) -> Any:
        """In plain transformers, in its own dtype if no other is named."""
        return open_plain(str(self.folder), None, dtype or self.config.dtype or torch.float32).eval()

    def raw_config(self) -> dict[str, Any]:
        raw = json_object(self.folder / "config.json")
        return {key: value for key, value in raw.items() if not key.startswith(FOREIGN)}


@dataclass(frozen=True)
class Result:
    """``bytes`` of the weights, what was ``verified``, and how to open it ``again`` for its loss (None: it
    cannot be run here)."""

    bytes: int
    verified: str
    again: Callable[[Path], Any] | None


@torch.no_grad()
def relative_logits(expected: Any, found: Any) -> float:
    """Relative L2 difference of the logits of 64 tokens."""
    tokens = torch.randint(expected.config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(0))
    with torch_functions():
        theirs, ours = (model.eval()(tokens, use_cache=False).logits.double() for model in (expected, found))
    return float((ours - theirs).norm() / theirs.norm())


def cache_bytes(config: Any, tokens: int) -> int:
    """Keys and values of the attention layers for so many tokens, in 16 bits. Recurrent states do not grow."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    layers = sum("attention" in kind and kind != "linear_attention" or kind == "hybrid" for kind in kinds)
    layers = layers if kinds else config.num_hidden_layers
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * 2 * tokens * layers * heads * size


def write_config(out: Path, raw: dict[str, Any]) -> None:
    """``config.json``."""
    (out / "config.json").write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")
