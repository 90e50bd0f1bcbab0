"""Memory of a training step on a GPU, term by term, in closed form.

    held        weights and AdamW's two moments; gradients join them layer by layer in backward, or stay from one
                micro-batch to the next
    inputs      of each layer, which checkpointing keeps; without it all that the layer's backward needs
    a layer     computed again and differentiated: the most is there when its MLP's gradients are
    gathered    weights that FSDP2 has put together, and the buffers it does so in
    head        its gradient, and its copy in the arithmetic's dtype

Proven for Olmo Hybrid by a trace of its step, operation by operation, on fake tensors; of other families only what is
held and the layers' inputs are reckoned. What torch's allocator leaves unused between tensors, CUDA's own memory and
NCCL's buffers are not in it: 1 to 3 GB, and more with many lengths.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from hybrid_ft.hybrid_model.families.known import family_of_type, is_known
from hybrid_ft.hybrid_model.quantised import packed_bytes

MARGIN = 0.03
"""relative, between the reckoning and the trace"""
CHUNK = 64
"""tokens of a chunk of the delta rule"""

_FLOAT32 = 4
_PROJECTIONS = (
    *("q_proj", "k_proj", "v_proj", "g_proj", "a_proj", "b_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
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
    gradient: int = _FLOAT32
    """bytes of a trained number's gradient"""
    moments: int = 2 * _FLOAT32
    """bytes that the optimizer keeps of it"""

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
    def embedding(self) -> int:
        """Bytes of one that FSDP2 lets go after forward: where all weights are trained, and the head has its own."""
        whole = self.is_cast or self.gradient == self.arithmetic
        return self.gradient * self.head if whole and self.outside.weights >= 2 * self.head else 0

    @property
    def proven(self) -> bool:
        return all(layer.kept is not None for layer in self.layers)


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch: tokens, those with a label, shared prompts; ``several`` of them are one step."""

    tokens: int
    labelled: int
    prompts: int = 0
    several: bool = True

    def over(self, processes: int) -> Batch:
        """What lies with each of some processes that share it; of heads the largest share counts as the mean."""
        tokens, labelled, prompts = (-(-n // processes) for n in (self.tokens, self.labelled, self.prompts))
        return replace(self, tokens=tokens, labelled=labelled, prompts=prompts)


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU at the moment when there are most: what they are, and when that is."""

    terms: dict[str, int]
    when: str
    proven: bool

    @property
    def total(self) -> int:
        return sum(self.terms.values())


def shape_of(model: nn.Module, config: PreTrainedConfig, bfloat16: bool, quantize: str | None = None) -> Shape:
    """Of a model with or without adapters, on any device and also on none.

    bfloat16: the arithmetic's dtype; weights without gradients are kept in it, others in float32; quantize: how the
    base's large ones are kept.
    """
    arithmetic = 2 if bfloat16 else _FLOAT32
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
    small = not adapters and arithmetic != _FLOAT32 and _trained_dtype(model) == torch.bfloat16
    full = not adapters and not small
    stream = _FLOAT32 if full else arithmetic
    kind = getattr(config, "model_type", None)
    known = is_known(kind) and family_of_type(kind).traced and not _unusual(model)
    layers = []
    for number in range(count):
        kind = config.layer_types[number] if known else ""
        of_kind = _of_delta if kind == "linear_attention" else _of_attention
        own = dict.fromkeys(_PROJECTIONS, (0, 0.0)) if small else adapters.get(number, {})
        kept = of_kind(config, own, full, arithmetic, stream) if known else None
        middle = config.intermediate_size if known else 0
        keeps_middle = full or "down_proj" in own
        attends = of_kind is _of_attention
        layers.append(
            Layer(
                name=f"layer {number}"
                + (f" ({'delta rule' if of_kind is _of_delta else 'attention'})" if known else ""),
                weights=weights[number],
                trained=trained[number],
                bytes=sizes[number],
                input=stream * config.hidden_size,
                read=0 if full and attends else stream * config.hidden_size,
                kept=kept,
                mixed=_mixed(config, kind, arithmetic) if known else 0,
                spare=(3 - keeps_middle) * arithmetic * middle + (stream - arithmetic * attends) * config.hidden_size,
                copies=weights[number] if full and arithmetic != _FLOAT32 else 0,
                last=config.hidden_size * middle if full or small else 0,
                attends=known and attends,
            )
        )
    outside = Layer("", weights[count], trained[count], sizes[count], 0, 0, 0, 0, 0, 0, 0)
    states = _FLOAT32 * _state(config) if known else 0
    kept_of_each = (2, 5) if small else (_FLOAT32, 2 * _FLOAT32)
    return Shape(tuple(layers), outside, head, arithmetic, states, unpacked, *kept_of_each)


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
    """Whether more is kept for backward than LoRA does: DoRA, or modules trained whole beside it."""
    adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
    whole = any(".modules_to_save." in name for name, _ in model.named_parameters())
    return whole or any(any(getattr(module, "use_dora", {}).values()) for module in adapted)


def _inputs(names: str, width: int, own: dict[str, tuple[int, float]], full: bool, arithmetic: int) -> int:
    """Bytes a token of one tensor that several projections read, as they keep it.

    In full training autocast makes of the float32 tensor a copy for each of them; adapters share it, unless each drops
    some of it.
    """
    if full:
        return arithmetic * width * (len(names.split()) if arithmetic != _FLOAT32 else 1)
    adapted = [own[name] for name in names.split() if name in own]
    dropped = sum(drop > 0 for _, drop in adapted)
    shared = arithmetic * width if adapted else 0
    return shared + dropped * (arithmetic + 1) * width + sum(rank for rank, _ in adapted) * arithmetic


def _of_mlp(config: Any, own: dict[str, tuple[int, float]], full: bool, arithmetic: int) -> int:
    middle = config.intermediate_size
    down = _inputs("down_proj", middle, own, full, arithmetic)
    return _inputs("gate_proj up_proj", config.hidden_size, own, full, arithmetic) + 2 * arithmetic * middle + down


def _of_delta(config: Any, own: dict[str, tuple[int, float]], full: bool, arithmetic: int, stream: int) -> int:
    """Bytes a token that backward of a delta layer needs beside its input."""
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    heads = config.linear_num_value_heads
    values = heads * config.linear_value_head_dim
    read = "q_proj k_proj v_proj g_proj a_proj b_proj"
    projected = 2 * keys + 2 * values
    convolved = 2 * keys + values
    return (
        _inputs(read, config.hidden_size, own, full, arithmetic)
        + arithmetic * (projected + convolved + values)
        + _inputs("o_proj", values, own, full, arithmetic)
        + heads * (arithmetic * CHUNK + 44)  # within chunks; decays at their steps, gates, a and b
        + stream * config.hidden_size  # the sum that the second norm reads
        + _of_mlp(config, own, full, arithmetic)
    )


def _of_attention(config: Any, own: dict[str, tuple[int, float]], full: bool, arithmetic: int, stream: int) -> int:
    """The same of an attention layer, whose norms come after mixer and MLP and read what those give."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    rope = (config.rope_parameters or {}).get("rope_theta") is not None
    return (
        _inputs("q_proj k_proj v_proj", config.hidden_size, own, full, arithmetic)
        - (arithmetic * config.hidden_size if own.keys() & {"q_proj", "k_proj", "v_proj"} else 0)  # the input itself
        + arithmetic * (2 * queries + 3 * keys + rope * (queries + keys))
        + _inputs("o_proj", queries, own, full, arithmetic)
        + (0 if full or "o_proj" in own else arithmetic * queries)  # attention's backward reads what it gave
        + 4 * config.num_attention_heads
        + 2 * arithmetic * config.hidden_size
        + _of_mlp(config, own, full, arithmetic)
    )


def _mixed(config: Any, kind: str, arithmetic: int) -> int:
    """Bytes a token of what the delta rule's operator, or attention's, returns."""
    if kind == "linear_attention":
        heads = config.linear_num_value_heads
        return heads * (arithmetic * (config.linear_value_head_dim + CHUNK) + 32)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads * (arithmetic * head + 4)


def _state(config: Any) -> int:
    return config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim


def peak(
    shape: Shape,
    batch: Batch,
    gpus: int = 1,
    sharded: bool = False,
    checkpointing: bool | str | None = True,
    left_out: Collection[int] = (),
) -> Memory:
    """The most that each of ``gpus`` holds in a step: in pieces over them (FSDP2), or a copy on each (DDP).

    checkpointing: as model.gradient_checkpointing has it on a GPU, "selective" and "offload" among it; None: True
    left_out: numbers of layers that are not checkpointed
    """
    pieces, how = gpus if sharded else 1, True if checkpointing is None else checkpointing
    found = _moments(shape, batch, pieces, gpus > 1 and not sharded, how, left_out)
    return max(found, key=lambda one: one.total)


def held(shape: Shape, gpus: int = 1, sharded: bool = False) -> int:
    """Bytes between steps: weights and two moments."""
    return -(-(shape.bytes + shape.moments * shape.trained) // (gpus if sharded else 1))


def _moments(
    shape: Shape, batch: Batch, pieces: int, ddp: bool, checkpointing: bool | str, left_out: Collection[int]
) -> Iterator[Memory]:
    """Forward's end, the head's backward, each layer's, the optimizer's step, the first gathering."""
    N, layers = batch.tokens, shape.layers
    hows = [False if number in left_out else checkpointing for number in range(len(layers))]
    gradient = shape.gradient
    all_gradients = gradient * shape.trained // pieces
    always = {"weights": shape.bytes // pieces, "moments": shape.moments * shape.trained // pieces}
    if ddp:
        always["DDP's buckets"] = gradient * shape.trained
    waiting = all_gradients if batch.several else 0
    narrow = pieces > 1 and shape.is_cast
    in_layer = [shape.gathered(layer) if pieces > 1 else 0 for layer in layers]
    embedding = shape.embedding if pieces > 1 else 0
    root = shape.outside.bytes - embedding if pieces > 1 else 0
    stream = layers[0].input if layers else 0
    copied = shape.arithmetic != gradient  # autocast's copies, of float32 weights
    head_copy = shape.head * shape.arithmetic if shape.head and copied else 0

    def memory(when: str, gradients: int, inputs: int, layer: int, gathered: int, head: int) -> Memory:
        terms = always | {"gradients": gradients}
        terms |= {"layers' inputs" if all(hows) else "layers": inputs, "a layer": layer, "head": head}
        return Memory(terms | ({"gathered": gathered} if pieces > 1 else {}), when, shape.proven)

    copies = [0 if narrow else shape.arithmetic * layer.copies for layer in layers]
    # without checkpointing no gradient goes beyond the first layer that is trained
    first = 0 if checkpointing else next((n for n, layer in enumerate(layers) if layer.trained), 0)
    below = [0]  # bytes that the layers before each keep until their backward
    for number, (layer, how) in enumerate(zip(layers, hows)):
        mixed = layer.mixed if how == "selective" else 0
        kept = 0 if how == "offload" else N * (layer.input + mixed)
        if not how:
            kept = N * (layer.read + (layer.kept or 0)) + copies[number] if number >= first else 0
        below.append(below[-1] + kept)
    last = in_layer[-1] if layers else 0
    ends = N * 2 * stream + batch.labelled * stream  # what the last norm reads and gives, rows of the labelled
    yield memory("the head's forward", waiting, below[-1], ends, root + last, head_copy)
    grown = waiting + (gradient * shape.head if pieces == 1 and not batch.several else 0)
    new = gradient * shape.head if pieces > 1 or batch.several else 0
    yield memory("the head's backward", grown, below[-1], ends - N * stream, root + last, head_copy + new)
    whole_head = gradient * shape.head if pieces > 1 else 0  # until the end of backward
    for number in range(len(layers) - 1, first - 1, -1):
        layer, how = layers[number], hows[number]
        mixed = layer.mixed if how == "selective" else 0
        inputs = N * (layer.input + mixed if how else layer.read)
        own = N * ((layer.kept or 0) - mixed + layer.spare) + batch.prompts * 4 * shape.pair if shape.proven else 0
        own += (copies[number] - shape.arithmetic * layer.last if copies[number] else 0) + shape.unpacked
        gathered = 0
        if pieces > 1:
            before = in_layer[number - 1] if number else 0
            # whose gradients are on their way, in float32
            after = _FLOAT32 * layers[number + 1].trained if number + 1 < len(layers) else 0
            gathered = root + in_layer[number] + before + after
        if pieces > 1 or batch.several:
            own += (shape.arithmetic if narrow else gradient) * layer.last
        else:
            grown += gradient * layer.last
        yield memory(f"the backward of {layer.name}", grown, below[number] + inputs, own, gathered, whole_head)
        if not batch.several:
            done = gradient * layer.trained // pieces
            grown += done - (gradient * layer.last if pieces == 1 else 0)
    yield memory("the optimizer's step", all_gradients, 0, 0, 0, 0)
    if pieces > 1 and layers:
        yield memory("the first gathering", waiting, N * stream, 0, 2 * (root + (embedding or in_layer[0])), 0)
