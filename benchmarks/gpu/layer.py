"""One Gated DeltaNet layer, forward and backward, beside transformers' own.

Ours takes the tokens end to end with a layout, theirs as a batch of rows of equal length, where it has no boundaries to
heed. Memory is the peak allocated during a turn, weights, input and gradients included.
"""

from __future__ import annotations

from typing import Any

import checks
import theirs
import torch
from common import Clock, Setting, Taken, Turn, in_short, other, record, side_by_side


def measure(setting: Setting, sequences: int) -> list[dict[str, Any]]:
    from hybrid_ft.hybrid_model.door.layout import build_layout
    from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config

    config = preset_config(setting.preset)
    checks.layer(config, setting.device)
    torch.manual_seed(0)
    with torch.device(setting.device):
        ours = checks.narrow(checks.delta_layer(config))
        x, up = (torch.randn(setting.tokens, config.hidden_size).bfloat16() for _ in range(2))
    x.requires_grad_()
    length = setting.tokens // sequences
    layout = build_layout([length] * sequences, device=setting.device)
    parameters = [x, *ours.parameters()]

    def turn_of(forward: Any) -> Turn:
        def turn(mark: Clock) -> None:
            torch.autograd.grad(forward(), parameters, up)
            mark()

        return turn

    sides, absent, note = {"ours": turn_of(lambda: ours(x.unsqueeze(0), layout).squeeze(0))}, "", ""
    try:
        setting.admit_theirs()
        plain = theirs.layer_like(ours, config)
        note = theirs.path_of(plain)
        sides["theirs"] = turn_of(lambda: plain(x.view(sequences, length, -1)).flatten(0, 1))
    except Exception as error:  # noqa: BLE001
        absent = in_short(error)
    taken = side_by_side(setting, sides)
    time = record(taken["ours"].times(), other(taken, absent, Taken.times), note=note)
    peak = _gib(taken["ours"])
    if peak is None:
        return [time, {"failed": "not measured"}]
    return [time, record(peak, other(taken, absent, _gib), note=note)]


def _gib(taken: Taken) -> list[float] | None:
    return None if taken.peak is None else [taken.peak / 2**30]
