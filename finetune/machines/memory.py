"""Memory of a training step on a GPU, term by term, in closed form.

    held        weights and AdamW's two moments, and what the trained ones start with where that is a stream's
                reference; gradients join them layer by layer in backward, or stay from one micro-batch to the next
    inputs      of each layer, which checkpointing keeps; without it all that the layer's backward needs
    a layer     computed again and differentiated: the most is there when its MLP's gradients are
    gathered    weights that FSDP2 has put together, and the buffers it does so in
    head        its gradient, and its copy in the arithmetic's dtype

Proven for Olmo Hybrid and Qwen3.5 by a trace of their step, operation by operation, on fake tensors; of families
without a record of it only what is held and the layers' inputs are reckoned. What torch's allocator leaves unused
between tensors, CUDA's own memory and NCCL's buffers are not in it: 1 to 3 GB, and more with many lengths.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from hybrid_ft.finetune.machines.shape import FLOAT32, Layer, Shape

MARGIN = 0.03
"""relative, between the reckoning and the trace"""


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch: tokens, those with a label, shared prompts, which are taken for half of the tokens;
    ``several`` of them are one step; ``processes`` share each, and these are the tokens of one of them."""

    tokens: int
    labelled: int
    prompts: int = 0
    several: bool = True
    processes: int = 1

    def over(self, processes: int) -> Batch:
        """What lies with each of some processes that share it."""
        tokens, labelled, prompts = (-(-n // processes) for n in (self.tokens, self.labelled, self.prompts))
        return replace(self, tokens=tokens, labelled=labelled, prompts=prompts, processes=processes)

    def kept(self, layer: Layer) -> int:
        """Bytes that a layer's backward needs beside its input, in the process with the largest share of the heads."""
        more = layer.apart if self.processes > 1 else 0
        more += layer.keys if self.prompts else 0
        return self.tokens * ((layer.kept or 0) + more) + self._above_mean(layer, layer.by_heads)

    def mixed(self, layer: Layer) -> int:
        """Bytes of what mixing the tokens gave in this process."""
        return self.tokens * layer.mixed + self._above_mean(layer, layer.mixed)

    def _above_mean(self, layer: Layer, by_heads: int) -> int:
        """Of ``by_heads`` bytes a token what the largest share of the heads has more than the mean."""
        largest = -(-layer.heads // self.processes)
        return self.tokens * by_heads * (self.processes * largest - layer.heads) // layer.heads


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU at the moment when there are most: what they are, and when that is."""

    terms: dict[str, int]
    when: str
    proven: bool

    @property
    def total(self) -> int:
        return sum(self.terms.values())


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
    """Bytes between steps: weights, those at the start where they are kept, and two moments."""
    return -(-(shape.bytes + shape.start + shape.moments) // (gpus if sharded else 1))


def _moments(
    shape: Shape, batch: Batch, pieces: int, ddp: bool, checkpointing: bool | str, left_out: Collection[int]
) -> Iterator[Memory]:
    """Forward's end, the head's backward, each layer's, the optimizer's step, the first gathering."""
    N, layers = batch.tokens, shape.layers
    hows = [False if number in left_out else checkpointing for number in range(len(layers))]
    gradient = shape.gradient
    all_gradients = gradient * shape.trained // pieces
    always = {"weights": shape.bytes // pieces, "moments": shape.moments // pieces}
    if shape.keeps_start:
        always["reference"] = shape.start // pieces
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
    # no gradient goes beyond the first layer that is trained
    first = next((n for n, layer in enumerate(layers) if layer.trained), 0)
    below = [0]  # bytes that the layers before each keep until their backward
    for number, (layer, how) in enumerate(zip(layers, hows)):
        mixed = batch.mixed(layer) if how == "selective" else 0
        kept = 0 if how == "offload" else N * layer.input + mixed
        if not how:
            kept = N * layer.read + batch.kept(layer) + copies[number]
        kept = kept if number >= first else 0
        below.append(below[-1] + kept)
    last = in_layer[-1] if layers else 0
    ends = N * 2 * stream + batch.labelled * stream  # what the last norm reads and gives, rows of the labelled
    yield memory("the head's forward", waiting, below[-1], ends, root + last, head_copy)
    grown = waiting + (gradient * shape.head if pieces == 1 and not batch.several else 0)
    new = gradient * shape.head if pieces > 1 or batch.several else 0
    yield memory("the head's backward", grown, below[-1], ends - N * stream, root + last, head_copy + new)
    # until the end of backward
    whole_head = gradient * shape.head if pieces > 1 or (shape.tied and batch.several) else 0
    for number in range(len(layers) - 1, first - 1, -1):
        layer, how = layers[number], hows[number]
        mixed = batch.mixed(layer) if how == "selective" else 0
        inputs = N * layer.input + mixed if how else N * layer.read
        own = batch.kept(layer) - mixed + batch.prompts * 4 * shape.pair if shape.proven else 0
        own += shape.unpacked
        # in a dtype of their own experts are gathered, and their gradients sent, apart from the layer
        apart = FLOAT32 * layer.experts if narrow else 0
        gathered = 0
        if pieces > 1:
            before = in_layer[number - 1] - (FLOAT32 * layers[number - 1].experts if narrow else 0) if number else 0
            # whose gradients are on their way, in float32
            after = FLOAT32 * layers[number + 1].trained if number + 1 < len(layers) else 0
            gathered = root + in_layer[number] + before + after
        at_once = pieces > 1 or batch.several
        for one in layer.moments:
            last = one.last
            there = own + (N * one.spare if shape.proven else 0)
            there += copies[number] - (0 if layer.experts else shape.arithmetic * last) if copies[number] else 0
            there += (shape.arithmetic if narrow and not layer.experts else gradient) * last if at_once else 0
            now = grown + (0 if at_once else gradient * last)
            # those of the next layer's experts have arrived after this layer was computed again, and before its own
            sent = min(apart, after) if pieces > 1 and (last or how) and not one.again else 0
            yield memory(
                f"the backward of {layer.name}", now, below[number] + inputs, there, gathered - sent, whole_head
            )
        if not batch.several:
            grown += gradient * layer.trained // pieces
    if shape.tied:  # the sum of the head's gradient and the embeddings' is a third one
        others = all_gradients if batch.several else all_gradients - gradient * shape.head // pieces
        on_their_way = FLOAT32 * layers[0].trained if pieces > 1 and layers else 0
        yield memory("the embeddings' backward", others, 0, N * stream, root + on_their_way, 3 * gradient * shape.head)
    elif embedding:  # a group of its own: its gradient is summed in float32, beside what is left of the head's
        others = all_gradients if batch.several else all_gradients - 2 * gradient * shape.head // pieces
        whole = gradient * shape.head
        summed = FLOAT32 * shape.head
        if gradient == FLOAT32:  # what it is summed from goes first
            summed = FLOAT32 * layers[0].trained if layers else 0
        else:
            summed += (FLOAT32 + gradient) * shape.head // pieces
        yield memory(
            "the embeddings' backward", others, 0, N * stream, whole, whole * (1 + (gradient == FLOAT32)) + summed
        )
    yield memory("the optimizer's step", all_gradients, 0, shape.step, 0, 0)
    if pieces > 1 and layers:
        # a layer's weights come in one buffer and are copied from it, while the last one's is still there
        coming = in_layer[-1] * (2 if narrow and layers[-1].experts else 3)
        yield memory("the last layer's gathering", waiting, below[-2], 0, root + coming, 0)
        yield memory("the first gathering", waiting, N * stream, 0, 2 * (root + (embedding or in_layer[0])), 0)
