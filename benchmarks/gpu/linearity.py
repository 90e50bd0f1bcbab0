"""Time per token of one sequence over lengths that double."""

from __future__ import annotations

from statistics import median
from typing import Any

import checks
from common import Setting, record, side_by_side
from delta_rule import make_inputs, turn_of

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule


def measure(setting: Setting) -> list[dict[str, Any]]:
    checks.delta_rule(setting.device)
    sides = {str(n): turn_of(gated_delta_rule, *make_inputs(setting, n, 1)) for n in setting.lengths}
    taken = side_by_side(setting, sides)
    per_token = {n: median(taken[str(n)].times()) * 1e6 / n for n in setting.lengths}
    apart = 100 * (max(per_token.values()) / min(per_token.values()) - 1)
    listed = " ".join(f"{n}: {nanoseconds:.0f}" for n, nanoseconds in per_token.items())
    made = record([apart], "not compared", note=f"ns per token of {listed}")
    return [made | {"turns": len(taken[str(setting.lengths[0])].phases), "ns_per_token": per_token}]
