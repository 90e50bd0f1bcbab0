"""The delta rule in bfloat16, forward and backward, beside flash-linear-attention's.

The floor is the larger of the bytes that must be moved over the memory's rate and the products over the tensor cores'
rate, both counted by hand for an H200; backward reads or writes its own states once.
"""

from __future__ import annotations

from typing import Any

import checks
import theirs
import torch
from common import Clock, Setting, Turn, in_short, other, record, side_by_side
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule

BYTES_PER_SECOND, FLOPS_PER_SECOND = 4.3e12, 790e12
# per token and head, for K = 96, V = 192 and chunks of 64 tokens
BYTES = {"forward": 1160, "backward": 3088}
FLOPS = {"forward": 12.6e6 / 64, "backward": 30e6 / 64}
H200_HEADS = (30, 96, 192)


def measure(setting: Setting, sequences: int) -> list[dict[str, Any]]:
    checks.delta_rule(setting.device)
    inputs, do, edges = make_inputs(setting, setting.tokens, sequences)
    sides, absent, notes = {"ours": turn_of(gated_delta_rule, inputs, do, edges)}, "", ""
    try:
        setting.admit_theirs()
        rule = theirs.delta_rule()
        notes = f"fla: {checks.error_of(rule, setting.device)}"
        sides["theirs"] = turn_of(rule, inputs, do, edges)
    except Exception as error:  # noqa: BLE001
        absent = in_short(error)
    taken = side_by_side(setting, sides)
    records = []
    for phase, name in enumerate(("forward", "backward", "both")):
        at = None if name == "both" else phase
        ours = taken["ours"].times(at)
        made = record(ours, other(taken, absent, lambda side: side.times(at)))  # noqa: B023
        records.append(made | {"note": "; ".join(filter(None, [share_of_floor(setting, name, made), notes]))})
    return records


def share_of_floor(setting: Setting, name: str, made: dict[str, Any]) -> str:
    if setting.heads != H200_HEADS or name not in BYTES:
        return ""
    work = setting.tokens * setting.heads[0]
    floor = 1e3 * max(BYTES[name] * work / BYTES_PER_SECOND, FLOPS[name] * work / FLOPS_PER_SECOND)
    made["h200_floor_ms"] = floor
    return f"{floor / made['ours']['median']:.0%} of an H200's floor"


def make_inputs(setting: Setting, tokens: int, sequences: int) -> tuple[list[Tensor], Tensor, Tensor]:
    H, K, V = setting.heads
    gen = torch.Generator(setting.device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(1, tokens, H, *shape, generator=gen, device=setting.device)

    q, k = (random(K).bfloat16() for _ in range(2))
    v, do = (random(V).bfloat16() for _ in range(2))
    g, beta = -0.2 * random().sigmoid(), 2 * random().sigmoid()
    edges = torch.arange(sequences + 1, device=setting.device, dtype=torch.int32) * (tokens // sequences)
    return [x.requires_grad_() for x in (q, k, v, g, beta)], do, edges


def turn_of(rule: theirs.Rule, inputs: list[Tensor], do: Tensor, edges: Tensor) -> Turn:
    def turn(mark: Clock) -> None:
        o = rule(*inputs, cu_seqlens=edges)[0]
        mark()
        torch.autograd.grad(o, inputs, do)
        mark()

    return turn
