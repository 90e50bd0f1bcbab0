"""Cached greedy decoding beside transformers' model with the same random weights."""

from __future__ import annotations

from typing import Any

import checks
import theirs
import torch
from common import Clock, Setting, Taken, Turn, in_short, other, record, side_by_side
from step import build


def measure(setting: Setting, batch: int) -> list[dict[str, Any]]:
    checks.model(setting.preset, setting.device)
    ours = build(setting).eval()
    # no row ends early
    ours.generation_config.eos_token_id = None
    checks.cached_step(ours, setting.device, ours.config.vocab_size)
    length, new = setting.prompt_and_new
    prompt = torch.randint(2, ours.config.vocab_size, (batch, length), device=setting.device)

    def turn_of(model: Any) -> Turn:
        def turn(mark: Clock) -> None:
            model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, do_sample=False)
            mark()

        return turn

    def rates(taken: Taken) -> list[float]:
        return [batch * new * 1e3 / milliseconds for milliseconds in taken.times()]

    sides, absent, note = {"ours": turn_of(ours)}, "", ""
    try:
        setting.admit_theirs()
        plain = theirs.model_like(ours).eval()
        note = theirs.path_of(plain.model.layers[0].linear_attn)
        sides["theirs"] = turn_of(plain)
    except Exception as error:  # noqa: BLE001
        absent = in_short(error)
    taken = side_by_side(setting, sides)
    note = "; ".join(filter(None, [note, f"prompt of {length}, {new} new"]))
    return [record(rates(taken["ours"]), other(taken, absent, rates), more_is_better=True, note=note)]
