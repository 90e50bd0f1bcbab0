"""A step's time on this machine, from one layer of each kind.

Models of one and of two layers of a kind are timed.
What two layers take more than one is a layer's time; what is left of one is the embedding's, the head's and the loss's.
So a step is known where the model itself does not fit.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hybrid_ft.errors import InputError
from hybrid_ft.finetune import models
from hybrid_ft.finetune.planning import view
from hybrid_ft.finetune.planning.work import Work
from hybrid_ft.finetune.runs import device
from hybrid_ft.finetune.training import seams
from hybrid_ft.finetune.training.adamw_bf16 import AdamWBF16
from hybrid_ft.finetune.training.muon import muon_of
from hybrid_ft.hybrid_model.adapters import add_lora
from hybrid_ft.hybrid_model.checkpoint.text_model import random_text_model
from hybrid_ft.hybrid_model.quantised import check_installed, known_to_peft, quantise
from hybrid_ft.hybrid_model.selective_checkpointing import mark_no_inputs, offload_inputs, selective_contexts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from hybrid_ft.finetune.recipe.schema import Recipe

SECONDS = 30.0
_LEAST, _MOST = 3, 20
_KINDS = 3
SPREAD = 0.15
"""relative, of what is said from and to: of a CPU's own time the median was 3 to 13 % below the truth over four shapes"""


@dataclass(frozen=True)
class Step:
    """Seconds of a micro-batch of ``tokens``: a layer of each kind, how many there are, everything else in it; and of
    the optimizer's step."""

    tokens: int
    layers: dict[str, tuple[float, int]]
    rest: float
    optimizer: float

    @property
    def micro_batch(self) -> float:
        return self.rest + sum(seconds * count for seconds, count in self.layers.values())


def measure(recipe: Recipe, config: PreTrainedConfig, work: Work, seconds: float = SECONDS) -> list[str]:
    """Time it, and say it in lines. Raises InputError for a model whose layers are not of few kinds."""
    step = timed(recipe, config, work, seconds)
    parts = [f"{name} {one * 1000:,.0f} ms x {count}" for name, (one, count) in step.layers.items()]
    parts += [f"ends and head {step.rest * 1000:,.0f} ms", f"optimizer {step.optimizer * 1000:,.0f} ms"]
    whole = step.micro_batch * work.micro_batches + step.optimizer
    lines = [
        view.line("measured", f"{device.name()}, a micro-batch of {step.tokens:,} tokens: {', '.join(parts)}"),
        view.line(
            "", f"a step of {work.micro_batches} of them {whole:,.2f} s, {step.tokens / step.micro_batch:,.0f} tokens/s"
        ),
    ]
    if work.tokens:
        run = work.tokens * work.epochs * step.micro_batch / step.tokens + (work.steps or 0) * step.optimizer
        lines.append(view.line("", f"the run on one of these {view.hours((run * (1 - SPREAD), run * (1 + SPREAD)))}"))
    return lines


def timed(recipe: Recipe, config: PreTrainedConfig, work: Work, seconds: float = SECONDS) -> Step:
    """``seconds``: of all timing, building not counted."""
    counts = Counter(getattr(config, "layer_types", None) or [])
    if not 1 <= len(counts) <= _KINDS:
        raise InputError(f"--measure: {config.model_type} does not say the kinds of its layers; leave --measure out")
    batch = _batch(work.typical, config.vocab_size)
    share = seconds / (2 * len(counts))
    layers: dict[str, tuple[float, int]] = {}
    rests, steps, optimizer = [], [], 0.0
    for kind, count in counts.items():
        one, two = (_of_layers(recipe, config, [kind] * number, batch, share) for number in (1, 2))
        layer = max(two.micro_batch - one.micro_batch, 0.0)
        layers[kind.replace("_", " ")] = (layer, count)
        rests.append(one.micro_batch - layer)
        # Muon's products of a layer's matrices take longer than AdamW's step of an embedding with as many numbers
        step = max(two.optimizer - one.optimizer, 0.0)
        steps.append(one.optimizer - step)
        optimizer += step * count
    rest = max(statistics.mean(rests), 0.0)
    return Step(sum(work.typical), layers, rest, optimizer + max(statistics.mean(steps), 0.0))


def _batch(lengths: Sequence[int], vocabulary: int) -> dict[str, torch.Tensor]:
    """A packed row as TRL's collator makes it, every second token trained."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (1, sum(lengths)), generator=generator)
    labels = ids.clone()
    labels[:, ::2] = -100
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return {
        name: x.to(device.kind()) for name, x in (("input_ids", ids), ("labels", labels), ("position_ids", positions))
    }


@dataclass(frozen=True)
class _Times:
    """Seconds of a forward and backward, and of an optimizer's step."""

    micro_batch: float
    optimizer: float


def _of_layers(
    recipe: Recipe, config: PreTrainedConfig, kinds: list[str], batch: dict[str, torch.Tensor], seconds: float
) -> _Times:
    """Of a model of these layers; the shortest of several times, which other programs have disturbed the least."""
    model = _model(recipe, config, kinds)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _optimizer(recipe, model, trained)

    def forward_and_backward() -> None:
        with models.arithmetic(recipe):
            loss = model(**batch, use_cache=False, fused_lm_head=True).loss
        loss.backward()

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    forward_and_backward()  # a step does not compile or allocate for the first time
    step()
    ends = time.perf_counter() + seconds
    passes: list[float] = []
    steps: list[float] = []
    while len(passes) < _LEAST or (time.perf_counter() < ends and len(passes) < _MOST):
        optimizer.zero_grad()
        passes.append(_seconds(forward_and_backward))
        steps.append(_seconds(step))
    return _Times(min(passes), min(steps))


def _optimizer(recipe: Recipe, model: Any, trained: list[Any]) -> torch.optim.Optimizer:
    """The recipe's, whose steps move nothing."""
    name = recipe.train.optimizer
    if name == "adamw_bf16":
        return AdamWBF16(trained, lr=1e-9)
    if name == "muon":
        return muon_of(model, lr=1e-9, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=device.is_gpu())
    return torch.optim.AdamW(trained, lr=1e-9, fused=device.is_gpu())


def _model(recipe: Recipe, config: PreTrainedConfig, kinds: list[str]) -> Any:
    """Random weights, and what the run sets: its arithmetic, checkpointing, adapters, quantised layers, head."""
    cut: Any = copy.deepcopy(config)
    cut.num_hidden_layers, cut.layer_types = len(kinds), list(kinds)
    lora, how = recipe.model.lora, recipe.model.quantize
    small = bool(lora) or recipe.train.optimizer == "adamw_bf16"
    kept = torch.bfloat16 if models.in_bfloat16(recipe) and small else torch.float32
    model: Any = random_text_model(cut, kept).to(device.kind()).train()
    if how:
        check_installed()
        quantise(model, how, kept)
    wanted = recipe.model.gradient_checkpointing
    if device.is_gpu() if wanted is None else wanted:
        if wanted == "offload":
            offload_inputs(model)
        selectively = {"context_fn": selective_contexts} if wanted == "selective" else {}
        model.gradient_checkpointing_enable({"use_reentrant": False} | selectively)
    if lora:
        with known_to_peft(model, how):
            model = add_lora(model, **lora.adapters | {"init": "default", "layers": None})
    mark_no_inputs(model)
    seams.use_fused_head(model)
    return model


def _seconds(what: Callable[[], None]) -> float:
    if device.is_gpu():
        torch.cuda.synchronize()
    began = time.perf_counter()
    what()
    if device.is_gpu():
        torch.cuda.synchronize()
    return time.perf_counter() - began
