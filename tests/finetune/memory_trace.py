"""The memory of a training step on a GPU, traced on fake tensors: every storage that is alive, operation by operation.

The model, its operators' fake implementations, autocast, checkpointing, PEFT and FSDP2 are the program's own; the
devices and the other processes are not there. Linear in the layers of a kind, so that a few stand for all.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import Linear, LoraLayer
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybrid_ft.hybrid_model.door.layout import SequenceLayout, build_layout
from hybrid_ft.hybrid_model.door.spread import Spread

BLOCK = 512
"""bytes, to whose multiples CUDA's allocator rounds"""


class LiveBytes(TorchDispatchMode):
    """``now`` and ``peak``: bytes of every storage that an operation has returned and that is still alive;
    ``gathered``: bytes that gatherings have put together."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.gathered = 0
        self._sizes: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index_put.default:
            # the gradient of an index, which autograd writes in place where nobody looks on
            out = torch.ops.aten.index_put_.default(*args, **(kwargs or {}))
        elif func is torch.ops.aten._grouped_mm.default and args[0].dtype == torch.float32:
            # a GPU has it in float32 too, of which the operator's fake knows nothing
            given = [
                arg.to(torch.bfloat16) if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg
                for arg in args
            ]
            out = torch.empty(func(*given, **(kwargs or {})).shape)
        else:
            out = func(*args, **(kwargs or {}))
        if func is torch.ops.c10d._allgather_base_.default:
            self.gathered += args[0].numel() * args[0].element_size()
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return out

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage; of one in pieces this process's piece."""
        storage = getattr(tensor, "_local_tensor", tensor).untyped_storage()
        key = id(storage)
        known = self._sizes.get(key)
        if known is None or known[0]() is not storage:
            self._sizes[key] = (weakref.ref(storage, lambda gone: self._forget(key, gone)), 0)
        self.resized(storage)

    def resized(self, storage: torch.UntypedStorage) -> None:
        known = self._sizes.get(id(storage))
        if known is None or known[0]() is not storage:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._sizes[id(storage)] = (known[0], size)
        self.now += size - known[1]
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, gone: Any) -> None:
        if key in self._sizes and self._sizes[key][0] is gone:
            self.now -= self._sizes.pop(key)[1]

    def lap(self) -> int:
        """The peak since the last call."""
        peak, self.peak = self.peak, self.now
        return peak

    @contextmanager
    def seeing_resizes(self) -> Iterator[None]:
        """FSDP2 gives a gathered weight's memory back by resizing its storage."""
        resize = torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            done = resize(storage, size)
            self.resized(storage)
            return done

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]


@dataclasses.dataclass(frozen=True)
class Peaks:
    """Bytes on each GPU: held between steps, and the most during forward, backward and the optimizer's
    step; gathered in it."""

    held: int
    forward: int
    backward: int
    optimizer: int
    gathered: int

    @property
    def all(self) -> int:
        return max(self.forward, self.backward, self.optimizer)


def trace(
    config: Any,
    *,
    tokens: int,
    documents: int,
    as_on_a_gpu: Callable[[], AbstractContextManager[None]],
    processes: int = 1,
    machines: int = 1,
    share: int = 1,
    lora: int = 0,
    targets: str = "all-linear",
    dropout: float = 0.0,
    pairs: bool = False,
    checkpointing: bool | str = True,
    left_out: frozenset[int] = frozenset(),
    micro_batches: int = 1,
    labelled: float = 0.5,
    fused: bool = True,
    reduce_at_once: bool = True,
    autocast_cache: bool = False,
    peft_forward: bool = False,
    optimizer: str = "adamw",
    quantize: bool = False,
    scores: bool = False,
) -> Peaks:
    """Two steps of SFT, the second of which counts: the optimizer's moments are there then.

    config     of the model, cut to as many layers as are to be traced
    tokens     of a micro-batch, in ``documents`` of one length, ``labelled`` of them trained
    machines   over which the processes are spread, each with a copy of the model; 1: one model over all
    share      among how many of them a micro-batch's tokens lie; this one has the most tokens and heads
    lora       rank of adapters on ``targets``; 0: all weights
    pairs      each document is a prompt, half of it, and two answers that continue it
    left_out   layers that checkpointing leaves out
    quantize   the base in nf4, under adapters
    scores     a reward model, whose head reads the last token of each document or answer

    optimizer  as train.optimizer has it

    The four before it are what the program sets, against what torch, accelerate and PEFT would do by themselves.
    """
    from hybrid_ft.finetune.training.fsdp import divide
    from hybrid_ft.hybrid_model import selective_checkpointing
    from hybrid_ft.hybrid_model.selective_checkpointing import (
        leave_out,
        mark_no_inputs,
        offload_inputs,
        selective_contexts,
    )

    length = tokens // documents
    layout = build_layout([length] * documents)
    if pairs:
        prompts, answers = [length - 2 * (length // 4)] * documents, [length // 4] * 2 * documents
        layout = build_layout(prompts + answers, [-1] * documents + [n // 2 for n in range(2 * documents)])
    mesh = _pretended(processes, machines)
    if share > 1:
        layout = dataclasses.replace(layout, spread=Spread.of(tokens, share, 0, dist.new_group(range(share))))
        tokens = len(layout.own_positions)
    try:
        with ExitStack() as around, FakeTensorMode(allow_non_fake_inputs=True), as_on_a_gpu():
            model = _fake_model(config, lora, targets, dropout, optimizer == "adamw_bf16", quantize, scores)
            plain = model.get_base_model() if lora else model
            model.train()
            leave_out(model, left_out)
            around.enter_context(mock.patch.object(torch.nn.functional, "dropout", _dropped_as_on_a_gpu))
            if checkpointing == "offload":
                offload_inputs(model)
                around.enter_context(mock.patch.object(selective_checkpointing, "save_on_cpu", _on_the_host))
            if checkpointing:
                selectively = {"context_fn": selective_contexts} if checkpointing == "selective" else {}
                how = {"use_reentrant": False, "preserve_rng_state": False} | selectively
                plain.gradient_checkpointing_enable(how)
                mark_no_inputs(plain)
            if mesh is not None:
                divide(model, mesh, bfloat16=True)
            live = LiveBytes()
            ends = documents * (2 if pairs else 1) if scores else int(tokens * labelled)
            step = _stepping(model, plain, _fake_layout(layout), ends, autocast_cache)
            made = _optimizer(model, optimizer, fused)
            for module in model.modules() if peft_forward else ():
                if isinstance(module, LoraLayer):
                    module.__class__ = Linear
            for tensor in [*model.parameters(), *model.buffers(), *_tables(model)]:
                live.add(tensor)
            with live.seeing_resizes(), live, disable_input_dtype_casting(model, active=not peft_forward):
                for _ in range(2):
                    forward = backward = 0
                    held, live.gathered = live.now, 0
                    live.lap()
                    for number in range(micro_batches):
                        if mesh is not None:
                            last_one = number == micro_batches - 1
                            model.set_requires_gradient_sync(reduce_at_once or last_one)
                            model.set_requires_all_reduce(last_one)
                        loss = step()
                        forward = max(forward, live.lap())
                        loss.backward()
                        backward = max(backward, live.lap())
                        del loss
                    made.step()
                    last = live.lap()
                    made.zero_grad()
            return Peaks(held, forward, backward, last, live.gathered)
    finally:
        if mesh is not None:
            dist.destroy_process_group()


def _optimizer(model: Any, name: str, fused: bool) -> Any:
    """As a run makes it on a GPU."""
    from hybrid_ft.finetune.training.adamw_bf16 import AdamWBF16
    from hybrid_ft.finetune.training.muon import muon_of

    if name == "muon":
        return muon_of(model, lr=1e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    if name == "adamw_bf16":
        return AdamWBF16(trained, lr=1e-5)
    return torch.optim.AdamW(trained, lr=1e-5, fused=fused, foreach=not fused)


def _dropped_as_on_a_gpu(x: torch.Tensor, p: float, training: bool, inplace: bool = False) -> torch.Tensor:
    """With a byte a number of what was dropped; on a CPU it is another tensor like ``x``."""
    return torch.native_dropout(x, p, training)[0]


def _on_the_host(pin_memory: bool) -> torch.autograd.graph.saved_tensors_hooks:
    """In place of torch's: here the host is the device, so what waits there must hold no memory of it."""
    assert pin_memory
    return torch.autograd.graph.saved_tensors_hooks(
        lambda x: (x.shape, x.dtype), lambda kept: torch.empty(kept[0], dtype=kept[1])
    )


def _stepping(model: Any, plain: Any, layout: SequenceLayout, labelled: int, cache: bool) -> Callable[[], torch.Tensor]:
    """Forward of a micro-batch as the fused head does it: backbone, rows of the labelled tokens, log-probabilities."""
    from hybrid_ft.kernels.token_log_probs import token_log_probs

    tokens = len(layout.own_positions)
    ids, rows, targets = torch.zeros(1, tokens, dtype=torch.long), *torch.zeros(2, labelled, dtype=torch.long)

    def forward(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache):
            hidden = plain.base_model(input_ids=input_ids, layout=layout, use_cache=False).last_hidden_state[0]
            chosen = hidden.index_select(0, rows)
            if hasattr(plain, "score"):
                return plain.score(chosen).sum()
            return -token_log_probs(chosen, plain.lm_head.weight.to(torch.bfloat16), targets)[0].sum()

    plain.forward = forward  # FSDP2's hooks are on the model's own call
    return lambda: model(ids)


def _fake_model(config: Any, lora: int, targets: str, dropout: float, small: bool, quantize: bool, scores: bool) -> Any:
    """The program's model with parameters that have no memory."""
    from transformers.initialization import no_init_weights

    from hybrid_ft.hybrid_model.adapters import add_lora
    from hybrid_ft.hybrid_model.families.known import family_of
    from hybrid_ft.hybrid_model.lay_flat import lay_flat
    from hybrid_ft.hybrid_model.quantised import NF4, known_to_peft
    from hybrid_ft.hybrid_model.scorer import as_scorer, flat_scorer, scorer_class

    config = as_scorer(config) if scores else config
    before = torch.get_default_dtype()
    with no_init_weights(), torch.device("meta"):
        torch.set_default_dtype(torch.bfloat16 if lora or small else torch.float32)
        try:
            kind = scorer_class(config) if scores else family_of(config).language_model(config.model_type)
            model: Any = flat_scorer(kind(config)) if scores else lay_flat(kind(config))
            model.tie_weights()
        finally:
            torch.set_default_dtype(before)
        packed = _packed(model) if quantize else {}
        if lora:
            with known_to_peft(model, NF4 if quantize else None):
                model = add_lora(model, targets, rank=lora, dropout=dropout)
    fakes: dict[Any, torch.nn.Parameter] = {}  # embeddings and a head may be one
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in fakes:
                    fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                    fakes[parameter] = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)
                module._parameters[name] = fakes[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    for layer, shape in packed.items():
        layer.weight = _packed_weight(shape)
    return model


def _packed(model: Any) -> dict[Any, torch.Size]:
    """bitsandbytes' layers in the place of those that are kept in 4 bits, and the shapes of their weights."""
    from bitsandbytes.nn import Linear4bit

    from hybrid_ft.hybrid_model.quantised import NF4, large_layers

    found = {}
    for name, layer in large_layers(model, model.config).items():
        parent, _, last = name.rpartition(".")
        shape = (layer.in_features, layer.out_features)
        with unset_fake_temporarily():  # of its own class of weights none can be fake; another takes its place
            made = Linear4bit(*shape, bias=False, compute_dtype=torch.bfloat16, quant_type=NF4)
        setattr(model.get_submodule(parent), last, made)
        found[made] = layer.weight.shape
    return found


def _packed_weight(shape: torch.Size) -> torch.nn.Parameter:
    """As bitsandbytes packs one: two numbers in a byte, a scale in 8 bits for 64 and one in 32 bits
    for 256 of these."""
    from bitsandbytes.functional import QuantState

    blocks = shape.numel() // 64
    scales = QuantState(
        absmax=torch.empty(-(-blocks // 256)), blocksize=256, code=torch.empty(256), dtype=torch.float32
    )
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8),
        shape=shape,
        code=torch.empty(16),
        blocksize=64,
        quant_type="nf4",
        dtype=torch.bfloat16,
        offset=torch.empty(()),
        state2=scales,
    )
    weight: Any = torch.nn.Parameter(torch.empty(shape.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    weight.quant_state = state
    return weight


def _tables(model: Any) -> Iterator[torch.Tensor]:
    """What unpacks the weights that are in 4 bits."""
    for parameter in model.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)


def _fake_layout(layout: SequenceLayout) -> SequenceLayout:
    """The same with tensors that have no values: the door itself looks at values."""

    def fake(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.empty(value.shape, dtype=value.dtype)
        if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            return tuple(fake(one) for one in value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return type(value)(**{f.name: fake(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init})
        return value

    return fake(layout)


def _pretended(processes: int, machines: int) -> Any:
    """A mesh of processes of which this one alone is there."""
    if processes == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    if machines == 1:
        return init_device_mesh("cpu", (processes,))
    return init_device_mesh("cpu", (machines, processes // machines), mesh_dim_names=("copy", "piece"))
