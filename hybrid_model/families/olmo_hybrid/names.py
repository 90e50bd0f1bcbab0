"""Olmo Hybrid's tensor names: the released checkpoint's, older ones, and transformers' in memory.

In memory, transformers joins the three convolutions of a delta layer into ``linear_attn.conv1d``; the released
checkpoints, vLLM and older transformers have ``q_conv1d``, ``k_conv1d`` and ``v_conv1d``. Files of ours have the three.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch
from transformers.models.olmo_hybrid import OlmoHybridConfig, OlmoHybridForCausalLM

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.families.family import is_of_sizes, is_scorer

_FUSED = re.compile(r"(.*linear_attn\.)conv1d\.weight")
_FIRST = re.compile(r".*linear_attn\.q_conv1d\.weight")
_PART = re.compile(r"(.*linear_attn\.)[qkv]_conv1d\.weight")
_LEGACY = (("attention_layer_norm", "input_layernorm"), ("feedforward_layer_norm", "post_attention_layernorm"))
_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {}
"""By config as JSON: a run's reading, merging and saving ask for the same, and making the 7B on the meta
device takes 0.2 s."""


def split_widths(config: OlmoHybridConfig) -> dict[str, int]:
    """Channels of each convolution, in the order in which they are joined."""
    key = config.linear_num_key_heads * config.linear_key_head_dim
    return {"q": key, "k": key, "v": config.linear_num_value_heads * config.linear_value_head_dim}


def released_state_dict(state_dict: dict[str, torch.Tensor], config: OlmoHybridConfig) -> dict[str, torch.Tensor]:
    """The same tensors under the released names."""
    widths = split_widths(config)
    released = {}
    for name, tensor in state_dict.items():
        if match := _FUSED.fullmatch(name):
            for part, piece in zip(widths, tensor.split(list(widths.values()))):
                # safetensors refuses tensors that share memory
                released[f"{match[1]}{part}_conv1d.weight"] = piece.clone()
        else:
            released[name] = tensor
    return released


def released_shapes(config: OlmoHybridConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint; 523 for Olmo Hybrid 7B. Raises InputError
    for an impossible config."""
    fields = config.to_json_string(use_diff=False)
    if fields not in _SHAPES:
        _SHAPES[fields] = _shapes(config)
    return dict(_SHAPES[fields])


def _shapes(config: OlmoHybridConfig) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            model = OlmoHybridForCausalLM(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if not is_of_sizes(error):
            raise
        raise InputError(
            f"config.json: no model can be made as it says ({' '.join(str(error).split())[:200]})"
        ) from None
    widths = split_widths(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        if match := _FUSED.fullmatch(name):
            for part, width in widths.items():
                shapes[f"{match[1]}{part}_conv1d.weight"] = (width, *tensor.shape[1:])
        elif not (config.tie_word_embeddings and name == "lm_head.weight"):
            shapes[name] = tuple(tensor.shape)
    if is_scorer(config):
        shapes.pop("lm_head.weight", None)
        shapes["score.weight"] = (config.num_labels, config.hidden_size)
    return shapes


def current_name(name: str) -> str:
    for old, new in _LEGACY:
        name = name.replace(old, new)
    return name


def joined_convolution(name: str) -> str | None:
    """The name in memory of the tensor that a released ``q_conv1d``, ``k_conv1d`` or ``v_conv1d`` is a part of."""
    match = _PART.fullmatch(name)
    return f"{match[1]}conv1d.weight" if match else None


def split_fused(found: dict[str, tuple[Path, tuple[int, ...]]], config: OlmoHybridConfig) -> None:
    """Count the convolutions as the released three parts, however transformers wrote them.

    On request it writes them joined. From 5.15 on it otherwise cuts the joined one into equal thirds under the released
    names (``Chunk``, the reverse of its ``Concatenate``, knows no widths): 3 x 3840 channels in the 7B for 2880, 2880
    and 5760. Reading joins q, k and v in this order again, so that both are the same tensor.
    """
    widths = split_widths(config)
    for name in [name for name in found if _FIRST.fullmatch(name)]:
        names = [name.replace("q_conv1d", f"{part}_conv1d") for part in widths]
        if all(other in found for other in names) and _in_thirds([found[other][1] for other in names], widths):
            for other, width in zip(names, widths.values()):
                path, shape = found[other]
                found[other] = (path, (width, *shape[1:]))
    for name in [name for name in found if _FUSED.fullmatch(name)]:
        path, shape = found.pop(name)
        if not shape or shape[0] != sum(widths.values()):
            raise InputError(f"{path}: tensor {name} has shape {list(shape)}, not {sum(widths.values())} channels")
        for part, width in widths.items():
            found[name.replace("conv1d", f"{part}_conv1d")] = (path, (width, *shape[1:]))


def _in_thirds(shapes: list[tuple[int, ...]], widths: dict[str, int]) -> bool:
    """Whether three parts are what ``torch.chunk`` makes of the joined convolution."""
    if any(len(shape) != 3 or shape[1:] != shapes[0][1:] for shape in shapes):
        return False
    return [shape[0] for shape in shapes] == [len(part) for part in torch.arange(sum(widths.values())).chunk(3)]
