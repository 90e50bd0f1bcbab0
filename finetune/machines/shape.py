"""A model's numbers and bytes, layer by layer, as a training step meets them.

What each layer keeps for its backward is known in closed form where a family's record says what its layers are
(``Step``); of other families only what is held and the layers' inputs are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from hybrid_ft.finetune.machines import layer_bytes
from hybrid_ft.finetune.machines.layer_bytes import FLOAT32, Moment
from hybrid_ft.finetune.runs.moments import moment_bytes, step_bytes
from hybrid_ft.hybrid_model.families.known import family_of_type, is_known
from hybrid_ft.hybrid_model.quantised import packed_bytes
from hybrid_ft.hybrid_model.scorer import HEAD

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
    moments             of its MLP's backward, with the gradient of what the layer gave
    forward             bytes a token that the forward of its experts has beside what backward needs
    copies              numbers whose copy in the arithmetic's dtype is kept for backward
    experts             numbers of routed experts, which are multiplied as they are kept
    keys                bytes a token of attention's keys and values, which answers read with their prompt's before them
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
    moments: tuple[Moment, ...]
    copies: int
    experts: int = 0
    forward: int = 0
    keys: int = 0
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
        cast = self.arithmetic * (layer.weights - layer.experts) + FLOAT32 * layer.experts
        return cast if self.is_cast else layer.bytes

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
    dropped = any(drop for layer in adapters.values() for _, drop in layer.values())
    if step and not step.delta and dropped:  # more than is counted, for a moment, in layers that norm what they give
        step = None
    layers = []
    for number in range(count):
        attends = step is not None and layer_bytes.attends(config, number)
        of_kind = layer_bytes.of_attention if attends else layer_bytes.of_delta
        own = dict.fromkeys(layer_bytes.projections(step), (0, 0.0)) if small and step else adapters.get(number, {})
        kept = of_kind(config, step, own, full, arithmetic, stream) if step else None
        mlp = layer_bytes.of_mlp(config, step, number, own, full, small, arithmetic) if step else None
        after = step is not None and attends and step.after
        experts = layer_bytes.experts_of(config, step, number)
        beside = (stream - arithmetic * after) * config.hidden_size if step else 0
        heads, by_heads = layer_bytes.by_heads(config, attends, arithmetic) if step else (1, 0)
        layers.append(
            Layer(
                name=f"layer {number}" + (f" ({'attention' if attends else 'delta rule'})" if step else ""),
                weights=weights[number],
                trained=trained[number],
                bytes=sizes[number],
                input=stream * config.hidden_size,
                read=0 if full and after else stream * config.hidden_size,
                kept=kept + mlp.kept if kept is not None and mlp else None,
                mixed=layer_bytes.mixed(config, attends, arithmetic) if step else 0,
                moments=tuple(replace(one, spare=one.spare + beside) for one in mlp.moments) if mlp else (Moment(),),
                copies=weights[number] - experts if full and arithmetic != FLOAT32 else 0,
                experts=experts,
                forward=mlp.forward if mlp else 0,
                keys=layer_bytes.keys_of(config, arithmetic) if attends else 0,
                attends=attends,
                heads=heads,
                by_heads=by_heads,
                apart=arithmetic * layer_bytes.queries_of(config) if attends and (full or "o_proj" in own) else 0,
            )
        )
    outside = Layer("", weights[count], trained[count], sizes[count], 0, 0, 0, 0, (), 0)
    states = FLOAT32 * layer_bytes.state(config) if step else 0
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
    """Whether more is kept for backward than LoRA does: DoRA, adapted experts, or modules trained whole beside it. A
    reward model's head, which reads last tokens alone, keeps next to nothing."""
    adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
    if any(hasattr(module, "parameter_name") for module in adapted):
        return True
    named = (name.partition(".modules_to_save.") for name, _ in model.named_parameters())
    whole = any(saved and not module.endswith(f".{HEAD.partition('.')[0]}") for module, saved, _ in named)
    return whole or any(any(getattr(module, "use_dora", {}).values()) for module in adapted)
