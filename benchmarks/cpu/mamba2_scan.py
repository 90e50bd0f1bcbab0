"""Mamba-2 on the delta rule's CPU path, with and without its correction.

    python benchmarks/cpu/mamba2_scan.py [--out FILE] [--rounds 7]

With the correction, keys are so small that it does nothing. Forward and backward of documents of 1,859 tokens, at the
heads of Nemotron-H 8B (8 of its 128) and of Granite 4 H micro (8 of its 48). Both run turn and turn about in one
process on one thread; their outputs and gradients must agree to 1e-5, or nothing is printed. Reported are CPU seconds,
median and quartiles, their ratio paired by round, and the triangular systems that each solves. Prints one JSON line per
size."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import common
import torch
from families import quartiles

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule

SMALL = 2.0**-30
"""It leaves k v^T as it is, and makes of (k k^T) S 2^-60 of itself; a power of two rounds nothing."""
LENGTHS = [310, 20, 158, 88, 263, 45, 700, 64, 95, 116]
SIZES = {"nemotron_h": (8, 64, 1, 128), "granitemoehybrid": (8, 64, 1, 256)}
"""Value heads, their size, groups, the state's size."""


def inputs(kind: str) -> list[torch.Tensor]:
    heads, size, groups, state = SIZES[kind]
    generator = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS)
    q, k = (torch.randn(1, tokens, groups, state, generator=generator) for _ in range(2))
    v = torch.randn(1, tokens, heads, size, generator=generator)
    dt = torch.nn.functional.softplus(torch.randn(1, tokens, heads, generator=generator) - 3)
    g = -dt * torch.arange(1, heads + 1)
    return [x.requires_grad_() for x in (q, k, v, g, dt)]


def step(leaves: list[torch.Tensor], edges: torch.Tensor, up: torch.Tensor, correct: bool) -> list[torch.Tensor]:
    """The outputs and all gradients."""
    q, k, v, g, dt = leaves
    if correct:
        k, v = k * SMALL, v / SMALL
    o, _ = gated_delta_rule(q, k, v, g, dt, cu_seqlens=edges, scale=1.0, use_qk_l2norm=False, correct=correct)
    return [o.detach(), *torch.autograd.grad(o, leaves, up)]


def inverses(run: Any) -> int:
    """Systems that are solved."""
    solve, seen = torch.linalg.solve_triangular, []
    torch.linalg.solve_triangular = lambda a, *rest, **options: seen.append(len(a)) or solve(a, *rest, **options)
    try:
        run()
    finally:
        torch.linalg.solve_triangular = solve
    return sum(seen)


def measure(kind: str, rounds: int) -> dict[str, Any]:
    leaves = inputs(kind)
    edges = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
    up = torch.randn(leaves[2].shape, generator=torch.Generator().manual_seed(1))
    sides = {name: partial(step, leaves, edges, up, name == "corrected") for name in ("corrected", "left out")}
    one, other = (run() for run in sides.values())
    worst = max(float((x - y).norm() / x.norm()) for x, y in zip(one, other, strict=True))
    if not worst < 1e-5:
        raise SystemExit(f"{kind}: the two differ by {worst:.1e}: nothing is reported")
    taken = common.in_turns(sides, rounds)
    return {
        "kind": kind,
        "tokens": sum(LENGTHS),
        "heads, size, groups, state": SIZES[kind],
        "differ": float(f"{worst:.1e}"),
        "inverses": {name: inverses(run) for name, run in sides.items()},
        "seconds": {name: quartiles(times.cpu) for name, times in taken.items()},
        "ratio": quartiles(common.ratios(*taken.values())),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    common.one_quiet_thread()
    for kind in SIZES:
        line = {"device": common.processor(), **common.versions(), **measure(kind, options.rounds)}
        print(json.dumps(line))
        common.append(options.out, line)


if __name__ == "__main__":
    main()
