"""One SFT step, full or LoRA, with gradient checkpointing and random weights, against transformers' model in this loop.

Both models hold the same weights, so that there is one copy of them and, in the full step, of AdamW's bfloat16 states.
The loop is the same: forward, the loss by a cross-entropy over chunks of tokens, backward, AdamW.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import checks
import theirs
import torch
from common import Clock, Setting, Taken, Turn, in_short, other, record, side_by_side
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 2048  # tokens whose logits exist at once: 0.8 GB in float32
# dense bfloat16 products per second, by what the card's name must and must not hold: the SXM cards alone have this rate
PEAK = 989e12
FULL_RATE, SLOWER = ("H200", "H100 80GB HBM3"), ("NVL", "PCIe")


def measure(setting: Setting, sequences: int, lora: bool) -> list[dict[str, Any]]:
    from hybrid_ft.hybrid_model.flops import training_flops

    checks.model(setting.preset, setting.device)
    ours = build(setting)
    config = ours.config
    sides, absent, note = {}, "", ""
    ids = torch.randint(2, config.vocab_size, (sequences, setting.tokens // sequences), device=setting.device)
    models = {"ours": ours}
    try:
        setting.admit_theirs()
        models["theirs"] = theirs.model_like(ours)
        note = theirs.path_of(models["theirs"].model.layers[0].linear_attn)
    except Exception as error:  # noqa: BLE001
        absent = in_short(error)
    shared = None if lora else torch.optim.AdamW(ours.parameters(), lr=1e-5, fused=True)
    for name, model in models.items():
        sides[name] = turn_of(model, ids, shared, lora)
    taken = side_by_side(setting, sides)
    made = record(_rates(taken["ours"], ids), other(taken, absent, lambda side: _rates(side, ids)), more_is_better=True)
    flops = training_flops(config, [ids.shape[1]] * sequences, frozen_weights=lora)
    made["flops"], made["optimizer"] = flops, "AdamW, fused, states in the parameters' dtype"
    parts = [note, made["optimizer"]]
    for name, side in taken.items():
        if side.phases:
            parts.append(f"{name} {_use(side, flops, made, name)}")
    return [made | {"note": "; ".join(filter(None, parts))}]


def build(setting: Setting) -> Any:
    """The preset with random weights, made on the device."""
    import hybrid_ft

    with torch.device(setting.device):
        return hybrid_ft.load(setting.preset, from_scratch=True, dtype="bfloat16")


def turn_of(model: Any, ids: Tensor, optimizer: torch.optim.Optimizer | None, lora: bool) -> Turn:
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    backbone, head = model.model, model.lm_head
    if lora:
        from hybrid_ft.hybrid_model.adapters import add_lora

        adapted = add_lora(model)
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-4, fused=True)
    assert optimizer is not None

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
