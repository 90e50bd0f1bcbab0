"""Causal attention of packed documents beside torch's compiled flex attention.

Causal attention of documents laid end to end, forward and backward, against torch's flex attention, compiled, with a
block mask for these documents. Ours is the model's own call: on flash-attn where it is installed for this GPU, else on
torch's varlen_attn. What else could run it is timed as well and told in the note.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from statistics import median
from typing import Any

import checks
import torch
from common import Clock, Setting, Taken, Turn, in_short, other, record, side_by_side
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from hybrid_ft.hybrid_model.door.layout import SequenceLayout, build_layout
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config
from hybrid_ft.hybrid_model.layers import attention
from hybrid_ft.hybrid_model.layers.installed_flash import PACKAGES, installed_varlen

Function = Callable[[Tensor, Tensor, Tensor], Any]
VERSION_2 = "flash_attn"


def measure(setting: Setting, sequences: int) -> list[dict[str, Any]]:
    checks.attention(setting.device)
    config = preset_config(setting.preset)
    H, D = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    lengths = unequal(setting.tokens, sequences)
    layout, scale = build_layout(lengths, device=setting.device), D**-0.5
    torch.manual_seed(0)
    q, k, v, up = (
        torch.randn(setting.tokens, H, D, device=setting.device, dtype=torch.bfloat16).requires_grad_(i < 3)
        for i in range(4)
    )
    functions: dict[str, Function] = {"ours": lambda *qkv: attention.segment_attention(*qkv, layout, scale)}
    absent = ""
    try:
        setting.admit_theirs()
        functions["theirs"] = flex(setting, lengths)
        if setting.device == "cuda":
            functions |= alternatives(layout, scale)
    except Exception as error:  # noqa: BLE001
        absent = in_short(error)
    sides = {
        # flex attention has no backward on a CPU
        name: turn_of(function, (q, k, v), up, backward=name == "ours" or not setting.smoke)
        for name, function in functions.items()
    }
    taken = side_by_side(setting, sides, may_fail=[name for name in sides if name != "ours"])
    how = "not compiled, forward alone" if setting.smoke else "compiled"
    parts = [f"ours: {which(setting, q, k)}", f"theirs: flex attention, {how}"]
    for name, side in taken.items():
        if name not in ("ours", "theirs"):
            parts.append(f"{name} {side.failed or f'{median(side.times()):.2f} ms'}")
    made = record(taken["ours"].times(), other(taken, absent, Taken.times))
    return [made | {"note": "; ".join(parts), "lengths": lengths}]


def unequal(tokens: int, sequences: int) -> list[int]:
    """Lengths as 1 to 2 to 3 and so on, of that many tokens together."""
    lengths = [tokens * i * 2 // (sequences * (sequences + 1)) for i in range(1, sequences + 1)]
    return [*lengths[:-1], tokens - sum(lengths[:-1])]


def flex(setting: Setting, lengths: list[int]) -> Function:
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(setting.device)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[query] == document[key])

    mask = create_block_mask(seen, None, None, sum(lengths), sum(lengths), device=setting.device)
    call = flex_attention if setting.smoke else torch.compile(flex_attention)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        o: Any = call(*rows, block_mask=mask)
        return o.squeeze(0).transpose(0, 1)

    return function


def alternatives(layout: SequenceLayout, scale: float) -> dict[str, Function]:
    """torch's kernel and, where it is installed, flash-attn 2, which is what torch's is made from."""
    found: dict[str, Function] = {
        "varlen_attn": lambda *qkv: attention.varlen_attention(*qkv, layout, scale, gqa=False)
    }
    try:
        version_2 = importlib.import_module(VERSION_2).flash_attn_varlen_func
    except (ImportError, AttributeError):
        return found
    edges, longest = layout.cu_seqlens, layout.max_seqlen
    found[VERSION_2] = lambda *qkv: version_2(*qkv, edges, edges, longest, longest, softmax_scale=scale, causal=True)
    return found


def which(setting: Setting, q: Tensor, k: Tensor) -> str:
    if setting.device == "cpu":
        return "a call for each document"
    if installed_varlen(q, k) is not None:
        return PACKAGES[torch.cuda.get_device_capability()[0]]
    return "torch's scaled_dot_product_attention or varlen_attn"


def turn_of(function: Function, leaves: tuple[Tensor, ...], up: Tensor, backward: bool) -> Turn:
    given = leaves if backward else tuple(leaf.detach() for leaf in leaves)

    def turn(mark: Clock) -> None:
        o = function(*given)
        if backward:
            torch.autograd.grad(o, given, up)
        mark()

    return turn
