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
    step = _Step(shape, batch, pieces, gpus > 1 and not sharded, how, left_out)
    return max(step.moments(), key=lambda one: one.total)


def held(shape: Shape, gpus: int = 1, sharded: bool = False) -> int:
    """Bytes between steps: weights, those at the start where they are kept, and two moments."""
    return -(-(shape.bytes + shape.start + shape.moments) // (gpus if sharded else 1))


class _Step:
    """A step, moment by moment.

    ``pieces``: processes that a model is divided over; ``ddp``: whether each of several has a copy of it.
    """

    def __init__(
        self, shape: Shape, batch: Batch, pieces: int, ddp: bool, checkpointing: bool | str, left_out: Collection[int]
    ) -> None:
        self.shape, self.batch, self.layers = shape, batch, shape.layers
        self.apart = pieces > 1
        self.hows = [False if number in left_out else checkpointing for number in range(len(shape.layers))]
        gradient = shape.gradient
        self.all_gradients = gradient * shape.trained // pieces
        self.head_gradient = gradient * shape.head
        self.always = {"weights": shape.bytes // pieces, "moments": shape.moments // pieces}
        if shape.keeps_start:
            self.always["reference"] = shape.start // pieces
        if ddp:
            self.always["DDP's buckets"] = gradient * shape.trained
        self.waiting = self.all_gradients if batch.several else 0
        self.pieces, self.narrow = pieces, self.apart and shape.is_cast
        self.gathered = [shape.gathered(layer) if self.apart else 0 for layer in self.layers]
        self.embedding = shape.embedding if self.apart else 0
        self.root = shape.outside.bytes - self.embedding if self.apart else 0
        self.stream = self.layers[0].input if self.layers else 0
        self.copies = [0 if self.narrow else shape.arithmetic * layer.copies for layer in self.layers]
        # no gradient goes beyond the first layer that is trained
        self.first = next((n for n, layer in enumerate(self.layers) if layer.trained), 0)
        self.below = self._below()

    def moments(self) -> Iterator[Memory]:
        yield from self._head()
        yield from self._layers()
        yield from self._embeddings()
        yield self._memory("the optimizer's step", self.all_gradients, 0, self.shape.step, 0, 0)
        yield from self._forward()

    def _memory(self, when: str, gradients: int, inputs: int, layer: int, gathered: int, head: int) -> Memory:
        terms = self.always | {"gradients": gradients}
        terms |= {"layers' inputs" if all(self.hows) else "layers": inputs, "a layer": layer, "head": head}
        return Memory(terms | ({"gathered": gathered} if self.apart else {}), when, self.shape.proven)

    def _below(self) -> list[int]:
        """Bytes that the layers before each, and before the end, keep until their backward."""
        below = [0]
        for number, (layer, how) in enumerate(zip(self.layers, self.hows)):
            mixed = self.batch.mixed(layer) if how == "selective" else 0
            kept = 0 if how == "offload" else self.batch.tokens * layer.input + mixed
            if not how:
                kept = self.batch.tokens * layer.read + self.batch.kept(layer) + self.copies[number]
            below.append(below[-1] + (kept if number >= self.first else 0))
        return below

    def _head(self) -> Iterator[Memory]:
        shape, batch = self.shape, self.batch
        gathered = self.root + (self.gathered[-1] if self.layers else 0)
        copied = shape.arithmetic != shape.gradient  # autocast's copies, of float32 weights
        copy = shape.head * shape.arithmetic if shape.head and copied else 0
        # what the last norm reads and gives, rows of the labelled
        ends = batch.tokens * 2 * self.stream + batch.labelled * self.stream
        yield self._memory("the head's forward", self.waiting, self.below[-1], ends, gathered, copy)
        now = ends - batch.tokens * self.stream
        new = self.head_gradient if self.apart or batch.several else 0
        yield self._memory("the head's backward", self._after_head(), self.below[-1], now, gathered, copy + new)

    def _after_head(self) -> int:
        """Bytes of gradients when the layers' backward begins."""
        return self.waiting + (0 if self.apart or self.batch.several else self.head_gradient)

    def _layers(self) -> Iterator[Memory]:
        """Each layer's backward, from the last on."""
        grown = self._after_head()
        for number in range(len(self.layers) - 1, self.first - 1, -1):
            yield from self._layer(number, grown)
            if not self.batch.several:
                grown += self.shape.gradient * self.layers[number].trained // self.pieces

    def _layer(self, number: int, grown: int) -> Iterator[Memory]:
        """``grown``: bytes of the gradients that are whole before."""
        shape, batch, layer, how = self.shape, self.batch, self.layers[number], self.hows[number]
        N, gradient = batch.tokens, shape.gradient
        mixed = batch.mixed(layer) if how == "selective" else 0
        inputs = N * layer.input + mixed if how else N * layer.read
        own = batch.kept(layer) - mixed + batch.prompts * 4 * shape.pair if shape.proven else 0
        own += shape.unpacked
        # until the end of backward
        whole_head = self.head_gradient if self.apart or (shape.tied and batch.several) else 0
        # in a dtype of their own experts are gathered, and their gradients sent, apart from the layer
        apart = self._experts(number)
        gathered = after = 0
        if self.apart:
            before = self.gathered[number - 1] - self._experts(number - 1) if number else 0
            # whose gradients are on their way, in float32
            after = FLOAT32 * self.layers[number + 1].trained if number + 1 < len(self.layers) else 0
            gathered = self.root + self.gathered[number] + before + after
        at_once = self.apart or batch.several
        for one in layer.moments:
            there = own + (N * one.spare if shape.proven else 0)
            if copy := self.copies[number]:
                there += copy - (0 if layer.experts else shape.arithmetic * one.last)
            there += (shape.arithmetic if self.narrow and not layer.experts else gradient) * one.last if at_once else 0
            now = grown + (0 if at_once else gradient * one.last)
            # those of the next layer's experts have arrived after this layer was computed again, and before its own
            sent = min(apart, after) if self.apart and (one.last or how) and not one.again else 0
            when = f"the backward of {layer.name}"
            yield self._memory(when, now, self.below[number] + inputs, there, gathered - sent, whole_head)

    def _experts(self, number: int) -> int:
        return FLOAT32 * self.layers[number].experts if self.narrow else 0

    def _embeddings(self) -> Iterator[Memory]:
        shape, layers = self.shape, self.layers
        gradient, whole, read = shape.gradient, self.head_gradient, self.batch.tokens * self.stream
        on_their_way = FLOAT32 * layers[0].trained if layers else 0
        when, several = "the embeddings' backward", self.batch.several
        if shape.tied:  # the sum of the head's gradient and the embeddings' is a third one
            others = self.all_gradients - (0 if several else whole // self.pieces)
            gathered = self.root + (on_their_way if self.apart else 0)
            yield self._memory(when, others, 0, read, gathered, 3 * whole)
        elif self.embedding:  # a group of its own: its gradient is summed in float32, beside what is left of the head's
            others = self.all_gradients - (0 if several else 2 * whole // self.pieces)
            if gradient == FLOAT32:  # what it is summed from goes first
                yield self._memory(when, others, 0, read, whole, 2 * whole + on_their_way)
            else:
                summed = FLOAT32 * shape.head + (FLOAT32 + gradient) * shape.head // self.pieces
                yield self._memory(when, others, 0, read, whole, whole + summed)

    def _forward(self) -> Iterator[Memory]:
        """Before the head."""
        if not self.layers:
            return
        last, of_last = self.layers[-1], self.gathered[-1]
        if last.forward and not self.hows[-1]:
            # the buffer that its weights came in goes with the next gathering
            own, gathered = self.batch.tokens * last.forward, self.root + 2 * of_last
            yield self._memory(f"the forward of {last.name}", self.waiting, self.below[-1], own, gathered, 0)
        if self.apart:
            # a layer's weights come in one buffer and are copied from it, while the last one's is still there
            coming = self.root + of_last * (2 if self.narrow and last.experts else 3)
            yield self._memory("the last layer's gathering", self.waiting, self.below[-2], 0, coming, 0)
            first = 2 * (self.root + (self.embedding or self.gathered[0]))
            yield self._memory("the first gathering", self.waiting, self.batch.tokens * self.stream, 0, first, 0)
