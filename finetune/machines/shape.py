"""A model's numbers and bytes, layer by layer, as a training step meets them.

What each layer keeps for its backward is known in closed form where a family's record says what its layers are
(``Step``); of other families only what is held and the layers' inputs are.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from hybrid_ft.finetune.runs.moments import moment_bytes, step_bytes
from hybrid_ft.hybrid_model.families.family import Step
from hybrid_ft.hybrid_model.families.known import family_of_type, is_known
from hybrid_ft.hybrid_model.quantised import packed_bytes
from hybrid_ft.hybrid_model.scorer import HEAD

FLOAT32 = 4
"""bytes"""
CHUNK = 64
"""tokens of a chunk of the delta rule"""

_ATTENTION = ("q_proj", "k_proj", "v_proj")
_MLP = ("gate_proj", "up_proj")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.*)")


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    weights, trained    numbers: all of them, and those with gradients
    bytes               of all its weights as they are kept
    input               bytes a token of what goes in, which checkpointing keeps
    read                bytes a token of it that backward itself reads
    kept                bytes a token that its backward needs beside the input; None: not known for this family
    mixed               of these what mixing the tokens gave, which selective checkpointing keeps
    spare               bytes a token more, when its MLP's gradients are there
    copies              numbers whose copy in the arithmetic's dtype is kept for backward
    last                numbers of the projection that backward starts with
    attends             whether it is an attention layer; of other families not known

    Where processes share a micro-batch's tokens, and each mixes those of some heads:

    heads               that are shared
    by_heads            of ``kept`` what lies by heads
    apart               bytes a token more: what is kept by heads and by tokens, and is one tensor otherwise
    """

    name: str
    weights: int
    trained: int
    bytes: int
    input: int
    read: int
    kept: int | None
    mixed: int
    spare: int
    copies: int
    last: int
    attends: bool = False
    heads: int = 1
    by_heads: int = 0
    apart: int = 0


@dataclass(frozen=True)
class Shape:
    """A model as it will be trained. ``arithmetic``: bytes of a number; ``outside``: everything that is in no layer."""

    layers: tuple[Layer, ...]
    outside: Layer
    head: int
    """numbers of the head, 0 where it has no gradient"""
    arithmetic: int
    pair: int
    """bytes of the states that one shared prompt hands over in a layer"""
    unpacked: int = 0
    """bytes of the largest weight in 4 or 8 bits, unpacked for the time of its product"""
    gradient: int = FLOAT32
    """bytes of a trained number's gradient"""
    moments: int = 0
    """bytes that the optimizer keeps of all of them"""
    step: int = 0
    """bytes that its step makes and lets go again"""
    keeps_start: bool = False
    """whether the values that trained numbers start with are kept beside them, as a reference"""

    @property
    def start(self) -> int:
        """Bytes of these values, which are in the dtype of their gradients."""
        return self.gradient * self.trained * self.keeps_start

    @property
    def bytes(self) -> int:
        return self.outside.bytes + sum(layer.bytes for layer in self.layers)

    @property
    def trained(self) -> int:
        return self.outside.trained + sum(layer.trained for layer in self.layers)

    @property
    def is_cast(self) -> bool:
        """Whether the layers' weights are kept in a wider dtype than they are multiplied in."""
        return any(layer.copies for layer in self.layers)

    def gathered(self, layer: Layer) -> int:
        """Bytes of a layer that FSDP2 puts together, cast before they are sent."""
        return self.arithmetic * layer.weights if self.is_cast else layer.bytes

    @property
    def tied(self) -> bool:
        """Whether the head that is trained is the embeddings too."""
        return 0 < self.head and self.outside.weights < 2 * self.head

    @property
    def embedding(self) -> int:
        """Bytes of one that FSDP2 lets go after forward: where all weights are trained, and the head has its own."""
        whole = self.is_cast or self.gradient == self.arithmetic
        return self.gradient * self.head if whole and not self.tied else 0

    @property
    def proven(self) -> bool:
        return all(layer.kept is not None for layer in self.layers)


def shape_of(
    model: nn.Module,
    config: PreTrainedConfig,
    bfloat16: bool,
    quantize: str | None = None,
    optimizer: str = "adamw",
) -> Shape:
    """Of a model with or without adapters, on any device and also on none.

    bfloat16: the arithmetic's dtype; weights without gradients are kept in it, others in float32; quantize: how the
    base's large ones are kept; optimizer: the recipe's name of it.
    """
    arithmetic = 2 if bfloat16 else FLOAT32
    count = max(
        (int(found[1]) + 1 for name, _ in model.named_parameters() if (found := _LAYER.search(name))), default=0
    )
    packed = packed_bytes(model, config, quantize) if quantize else {}
    unpacked = 0
    weights, trained, sizes = ([0] * (count + 1) for _ in range(3))
    head = 0
    ends = getattr(model, "get_output_embeddings", lambda: None)()
    for name, parameter in model.named_parameters():
        found = _LAYER.search(name)
        place = int(found[1]) if found else count
        weights[place] += parameter.numel()
        sizes[place] += packed.get(name, parameter.numel() * parameter.element_size())
        if name in packed:
            unpacked = max(unpacked, arithmetic * parameter.numel())
        if parameter.requires_grad:
            trained[place] += parameter.numel()
        if ends is not None and parameter is ends.weight and parameter.requires_grad:
            head = parameter.numel()
    adapters = _adapters(model)
    # weights that are trained in the arithmetic's dtype are read as they lie; an adapter of no rank keeps what they do
    small = not adapters and arithmetic != FLOAT32 and _trained_dtype(model) == torch.bfloat16
    full = not adapters and not small
    stream = FLOAT32 if full else arithmetic
    kind = getattr(config, "model_type", None)
    step = family_of_type(kind).step if is_known(kind) and not _unusual(model) else None
    layers = []
    for number in range(count):
        attends = step is not None and config.layer_types[number] != "linear_attention"
        of_kind = _of_attention if attends else _of_delta
        own = dict.fromkeys(_projections(step), (0, 0.0)) if small and step else adapters.get(number, {})
        kept = of_kind(config, step, own, full, arithmetic, stream) if step else None
        middle = config.intermediate_size if step else 0
        keeps_middle = full or "down_proj" in own
        after = step is not None and attends and step.after
        heads, by_heads = _by_heads(config, attends, arithmetic) if step else (1, 0)
        layers.append(
            Layer(
                name=f"layer {number}" + (f" ({'attention' if attends else 'delta rule'})" if step else ""),
                weights=weights[number],
                trained=trained[number],
                bytes=sizes[number],
                input=stream * config.hidden_size,
                read=0 if full and after else stream * config.hidden_size,
                kept=kept,
                mixed=_mixed(config, attends, arithmetic) if step else 0,
                spare=(3 - keeps_middle) * arithmetic * middle + (stream - arithmetic * after) * config.hidden_size,
                copies=weights[number] if full and arithmetic != FLOAT32 else 0,
                last=config.hidden_size * middle if full or small else 0,
                attends=attends,
                heads=heads,
                by_heads=by_heads,
                apart=arithmetic * _queries(config) if attends and (full or "o_proj" in own) else 0,
            )
        )
    outside = Layer("", weights[count], trained[count], sizes[count], 0, 0, 0, 0, 0, 0, 0)
    states = FLOAT32 * _state(config) if step else 0
    gradient = arithmetic if small else FLOAT32
    kept, made = moment_bytes(model, optimizer), step_bytes(model, optimizer)
    return Shape(tuple(layers), outside, head, arithmetic, states, unpacked, gradient, kept, made)


def _trained_dtype(model: nn.Module) -> torch.dtype | None:
    """Of most of the trained numbers."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return max(trained, key=lambda parameter: parameter.numel(), default=torch.empty(0)).dtype


def _adapters(model: nn.Module) -> dict[int, dict[str, tuple[int, float]]]:
    """Rank and dropout of every adapted projection, by layer and name."""
    found: dict[int, dict[str, tuple[int, float]]] = {}
    for name, module in model.named_modules():
        place = _LAYER.search(name)
        if place and isinstance(lora := getattr(module, "lora_A", None), nn.ModuleDict) and len(lora):
            rank = int(next(iter(lora.values())).out_features)  # type: ignore[arg-type]
            dropouts: Any = module.lora_dropout
            drop = max((float(getattr(one, "p", 0.0)) for one in dropouts.values()), default=0.0)
            found.setdefault(int(place[1]), {})[place[2].rpartition(".")[2]] = (rank, drop)
    return found


def _unusual(model: nn.Module) -> bool:
    """Whether more is kept for backward than LoRA does: DoRA, or modules trained whole beside it. A reward model's
    head, which reads last tokens alone, keeps next to nothing."""
    adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
    named = (name.partition(".modules_to_save.") for name, _ in model.named_parameters())
    whole = any(saved and not module.endswith(f".{HEAD.partition('.')[0]}") for module, saved, _ in named)
    return whole or any(any(getattr(module, "use_dora", {}).values()) for module in adapted)


def _projections(step: Step) -> tuple[str, ...]:
    return (*step.delta, step.out, *_ATTENTION, "o_proj", *_MLP, "down_proj")


def _inputs(names: Collection[str], width: int, own: dict[str, tuple[int, float]], full: bool, arithmetic: int) -> int:
    """Bytes a token of one tensor that several projections read, as they keep it.

    In full training autocast makes of the float32 tensor a copy for each of them; adapters share it, unless each drops
    some of it.
    """
    if full:
        return arithmetic * width * (len(names) if arithmetic != FLOAT32 else 1)
    adapted = [own[name] for name in names if name in own]
    dropped = sum(drop > 0 for _, drop in adapted)
    shared = arithmetic * width if dropped < len(adapted) else 0
    return shared + dropped * (arithmetic + 1) * width + sum(rank for rank, _ in adapted) * arithmetic


def _of_mlp(config: Any, own: dict[str, tuple[int, float]], full: bool, arithmetic: int) -> int:
    middle = config.intermediate_size
    down = _inputs(("down_proj",), middle, own, full, arithmetic)
    return _inputs(_MLP, config.hidden_size, own, full, arithmetic) + 2 * arithmetic * middle + down


def _of_delta(
    config: Any, step: Step, own: dict[str, tuple[int, float]], full: bool, arithmetic: int, stream: int
) -> int:
    """Bytes a token that backward of a delta layer needs beside its input."""
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    heads = config.linear_num_value_heads
    values = heads * config.linear_value_head_dim
    projected = 2 * keys + 2 * values
    convolved = 2 * keys + values
    return (
        _inputs(step.delta, config.hidden_size, own, full, arithmetic)
        + arithmetic * (projected + convolved + values)
        + _inputs((step.out,), values, own, full, arithmetic)
        + heads * (arithmetic * CHUNK + 44)  # within chunks; decays at their steps, gates, a and b
        + stream * config.hidden_size  # the sum that the second norm reads
        + _of_mlp(config, own, full, arithmetic)
    )


def _of_attention(
    config: Any, step: Step, own: dict[str, tuple[int, float]], full: bool, arithmetic: int, stream: int
) -> int:
    """The same of an attention layer. Norms that come after mixer and MLP read what those give."""
    queries, hidden = _queries(config), config.hidden_size
    keys = queries // config.num_attention_heads * config.num_key_value_heads
    if step.gated:  # the gate and its sigmoid, what attention gave and that side by side, which the sigmoid multiplies
        given = 4 * queries
    else:
        given = 0 if full or "o_proj" in own else queries  # attention's backward reads what it gave
    if step.after:
        norms = 2 * arithmetic * hidden
        if any(own[name][1] == 0 for name in _ATTENTION if name in own):  # they read the input itself
            norms -= arithmetic * hidden
    else:
        norms = stream * hidden
    return (
        _inputs(_ATTENTION, hidden, own, full, arithmetic)
        + arithmetic * (2 * queries + 3 * keys + given)  # as projected, and with norm and rope; v
        + _inputs(("o_proj",), queries, own, full, arithmetic)
        + 4 * config.num_attention_heads
        + norms
        + _of_mlp(config, own, full, arithmetic)
    )


def _queries(config: Any) -> int:
    """Attention's channels."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_attention_heads * head)


def _by_heads(config: Any, attends: bool, arithmetic: int) -> tuple[int, int]:
    """Heads of a layer, and bytes a token of theirs that its backward needs: what the mixer's
    operators read and return."""
    if attends:
        queries, heads = _queries(config), config.num_attention_heads
        keys = queries // heads * config.num_key_value_heads
        return config.num_key_value_heads, arithmetic * (2 * queries + 2 * keys) + 4 * heads
    keys, heads = config.linear_num_key_heads * config.linear_key_head_dim, config.linear_num_value_heads
    values = heads * config.linear_value_head_dim
    return config.linear_num_key_heads, arithmetic * 2 * (2 * keys + values) + heads * (arithmetic * CHUNK + 44)


def _mixed(config: Any, attends: bool, arithmetic: int) -> int:
    """Bytes a token of what the delta rule's operator, or attention's, returns."""
    if not attends:
        heads = config.linear_num_value_heads
        return heads * (arithmetic * (config.linear_value_head_dim + CHUNK) + 32)
    return arithmetic * _queries(config) + 4 * config.num_attention_heads


def _state(config: Any) -> int:
    return config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim
