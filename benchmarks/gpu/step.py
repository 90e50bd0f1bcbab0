"""One SFT step, full or LoRA, beside transformers' model.

Where TRL is installed each side is a trainer of its (see trainers.py); elsewhere both are in one plain loop: forward,
the loss by a cross-entropy over chunks of tokens, backward, AdamW. Both models hold the same weights, so that there is
one copy of them and, in the full step, of AdamW's bfloat16 states.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import checks
import theirs
import torch
from common import Clock, Setting, Taken, Turn, in_short, other, record, side_by_side
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from trainers import Step, Trainers

CHUNK = 2048  # tokens whose logits exist at once: 0.8 GB in float32
FIRST_LOSSES_APART = 0.01  # from here on they are told
# dense bfloat16 products per second, by what the card's name must and must not hold: the SXM cards alone have this rate
PEAK = 989e12
FULL_RATE, SLOWER = ("H200", "H100 80GB HBM3"), ("NVL", "PCIe")


def measure(setting: Setting, sequences: int, lora: bool) -> list[dict[str, Any]]:
    from hybrid_ft.hybrid_model.flops import training_flops

    checks.model(setting.preset, setting.device)
    ours = build(setting)
    config = ours.config
    absent, note = "", ""
    ids = torch.randint(2, config.vocab_size, (sequences, setting.tokens // sequences), device=setting.device)
    models = {"ours": ours}
    try:
        setting.admit_theirs()
        models["theirs"] = theirs.model_like(ours)
        note = theirs.path_of(models["theirs"].model.layers[0].linear_attn)
    except Exception as error:  # noqa: BLE001
        absent = in_short(error)
    shared = None if lora else torch.optim.AdamW(ours.parameters(), lr=1e-5, fused=True)
    ready = {name: (model, *prepare(model, shared)) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as folder:
        sides, loop = in_trainers(setting, ready, ids, Path(folder))
        if not sides:
            sides = {name: in_loop(model, ids, optimizer) for name, (model, _, optimizer) in ready.items()}
        taken = side_by_side(setting, sides)
    made = record(_rates(taken["ours"], ids), other(taken, absent, lambda side: _rates(side, ids)), more_is_better=True)
    flops = training_flops(config, [ids.shape[1]] * sequences, frozen_weights=lora)
    made["flops"], made["optimizer"] = flops, "AdamW, fused, states in the parameters' dtype"
    parts = [note, loop, made["optimizer"]]
    for name, side in taken.items():
        if side.phases:
            parts.append(f"{name} {_use(side, flops, made, name)}")
    return [made | {"note": "; ".join(filter(None, parts))}]


def prepare(model: Any, shared: torch.optim.Optimizer | None) -> tuple[Any, torch.optim.Optimizer]:
    """The model as it is trained, with adapters and an optimizer of its own unless one is ``shared``."""
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if shared is not None:
        return model, shared
    from hybrid_ft.hybrid_model.adapters import add_lora

    adapted = add_lora(model)
    return adapted, torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-4, fused=True)


def in_trainers(setting: Setting, ready: dict[str, Any], ids: Tensor, folder: Path) -> tuple[dict[str, Turn], str]:
    """Both sides' steps in TRL's trainer and what is to be said of it; no steps, and why, where one of them fails."""
    try:
        trainers = Trainers(setting, ids, folder)
        steps = {name: Step(trainers.of(name, model), optimizer) for name, (_, model, optimizer) in ready.items()}
        losses = {name: step.loss() for name, step in steps.items()}
    except Exception as error:  # noqa: BLE001
        return {}, f"{in_short(error)}: plain loop on both sides"
    said = "TRL's SFTTrainer on both sides"
    if max(losses.values()) > (1 + FIRST_LOSSES_APART) * min(losses.values()):
        said += ", whose first losses differ: " + ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
    return {name: step.turn() for name, step in steps.items()}, said


def build(setting: Setting) -> Any:
    """The preset with random weights, made on the device."""
    import hybrid_ft

    with torch.device(setting.device):
        return hybrid_ft.load(setting.preset, from_scratch=True, dtype="bfloat16")


def in_loop(model: Any, ids: Tensor, optimizer: torch.optim.Optimizer) -> Turn:
    backbone, head = model.model, model.lm_head

    def turn(mark: Clock) -> None:
        optimizer.zero_grad()  # first, because a side that ran out of memory may have left gradients
        hidden = backbone(input_ids=ids, use_cache=False).last_hidden_state
        loss = chunked_loss(hidden[:, :-1].flatten(0, 1), head.weight, ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        mark()

    return turn


def chunked_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy; the logits of a chunk are computed again in backward."""
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, target in zip(hidden.split(CHUNK), targets.split(CHUNK)):
        total = total + checkpoint(_loss, part, weight, target, use_reentrant=False)
    return total / len(targets)


def _loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.t()).float(), targets, reduction="sum")


def _rates(taken: Taken, ids: Tensor) -> list[float]:
    return [ids.numel() * 1e3 / milliseconds for milliseconds in taken.times()]


def _use(taken: Taken, flops: int, made: dict[str, Any], name: str) -> str:
    """Share of the card's peak, and memory, where they are known."""
    said = []
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    if any(word in card for word in FULL_RATE) and not any(word in card for word in SLOWER):
        made[f"{name}_mfu"] = flops * 1e3 / median(taken.times()) / PEAK
        said.append(f"MFU {made[f'{name}_mfu']:.0%}")
    if taken.peak is not None:
        made[f"{name}_peak_gib"] = taken.peak / 2**30
        said.append(f"{taken.peak / 2**30:.1f} GiB")
    return " ".join(said) or "MFU not known"
