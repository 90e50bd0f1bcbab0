"""The delta rule in float32 on one thread, beside transformers' torch path.

    python benchmarks/cpu/delta_rule.py                  # about three minutes

Both sides take turns in one process, both with the l2 norm of q and k inside; a time is CPU seconds, median of several
turns with the fastest and slowest beside it. Peak memory is measured in a process per side: the kernel's high-water
mark is reset after the inputs exist, so what counts is everything that forward and backward add, gradients included.
The share of the machine's rate is the op's matrix products, counted by hand, over its time, against the rate of one
batched product [8, 64, 96] x [8, 96, 192] in the same run. Nothing is printed if the op fails its own check.
"""

import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import common
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.models.olmo_hybrid import modeling_olmo_hybrid

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule, gated_delta_rule_reference
from hybrid_ft.kernels.gated_delta_rule.cpu.chunked import tile_sizes

# (B, T, H, K, V), the least ratio that is acceptable, turns
SHAPES = [
    ((4, 512, 4, 32, 64), 3.0, 15),
    ((1, 2048, 4, 32, 64), 3.0, 15),
    ((1, 2048, 8, 96, 192), 3.0, 7),
    ((1, 8192, 4, 96, 192), 3.0, 3),
    ((1, 16384, 1, 96, 192), 6.0, 3),
]
LENGTHS = [2048, 4096, 8192, 16384]
Shape = tuple[int, int, int, int, int]


def inputs(shape: Shape, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """q, k, v, g, beta and a gradient of o."""
    B, T, H, K, V = shape
    gen = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(B, T, H, K, generator=gen) for _ in range(2))
    v, do = (torch.randn(B, T, H, V, generator=gen) for _ in range(2))
    g, beta = -0.2 * torch.rand(B, T, H, generator=gen), 2 * torch.rand(B, T, H, generator=gen)
    return [x.requires_grad_() for x in (q, k, v, g, beta)], do


def theirs(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    # transformers may replace the function by a kernel from the hub; the undecorated one is its torch path.
    rule = modeling_olmo_hybrid.torch_chunk_gated_delta_rule
    rule = getattr(rule, "__wrapped__", rule)
    return rule(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True)[0]


def ours(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    return gated_delta_rule(q, k, v, g, beta)[0]


def check() -> None:
    """Exits if an output or gradient is further from float64 than four times the float32 reference is."""
    for shape in ((2, 130, 2, 32, 64), (1, 130, 1, 96, 192)):
        leaves, do = inputs(shape)
        results = []
        for rule, dtype in (
            (gated_delta_rule_reference, torch.float64),
            (gated_delta_rule_reference, torch.float32),
            (gated_delta_rule, torch.float32),
        ):
            xs = [x.detach().to(dtype).requires_grad_() for x in leaves]
            o = rule(*xs)[0]
            results.append([o, *torch.autograd.grad(o, xs, do.to(dtype))])
        for name, true, reference, got in zip(("o", "dq", "dk", "dv", "dg", "dbeta"), *results):
            error, allowed = ((x - true).norm() / true.norm() for x in (got, reference))
            if not error <= max(4 * allowed, 1e-6):
                sys.exit(
                    f"error: {name} is off by {error:.1e} at {shape}, the reference by {allowed:.1e}; nothing timed"
                )


def cpu_seconds(rule: Callable[..., Tensor], leaves: list[Tensor], do: Tensor) -> float:
    start = time.process_time()
    torch.autograd.grad(rule(*leaves), leaves, do)
    return time.process_time() - start


def product_rate() -> float:
    """FLOP per CPU second of a batched float32 product, the best of ten."""
    a, b = torch.randn(8, 64, 96), torch.randn(8, 96, 192)
    out, turns = torch.bmm(a, b), 200
    seconds = []
    for _ in range(10):
        start = time.process_time()
        for _ in range(turns):
            torch.bmm(a, b, out=out)
        seconds.append(time.process_time() - start)
    return 2 * a.numel() * b.shape[2] * turns / min(seconds)


def product_flops(shape: Shape) -> int:
    """FLOP of the op's matrix products, forward (with the inverse of a triangle) and backward."""
    B, T, H, K, V = shape
    C = tile_sizes(K, V, torch.float32)[0]
    forward = 4 * C * C * K + C**3 // 3 + 6 * C * K * V + 4 * C * C * V
    backward = 12 * C * C * K + 12 * C * K * V + 8 * C * C * V
    return B * H * -(-T // C) * (forward + backward)


def peak_bytes(rule: Callable[..., Tensor], shape: Shape) -> int:
    """What one forward and backward adds to the memory of a fresh process, at its peak."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_bytes, (rule, shape))


def _peak_bytes(rule: Callable[..., Tensor], shape: Shape) -> int:
    torch.set_num_threads(1)
    leaves, do = inputs(shape)
    cpu_seconds(rule, *inputs((1, 128, *shape[2:])))
    return common.peak_memory(lambda: cpu_seconds(rule, leaves, do))


def machine() -> dict[str, str]:
    return {
        "device": common.processor(),
        "python": platform.python_version(),
        **common.versions(),
        "threads": "1",
    }


def measure(shape: Shape, bar: float, turns: int, rate: float) -> dict[str, Any]:
    leaves, do = inputs(shape)
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    for turn in range(turns + 1):
        for name, rule in (("theirs", theirs), ("ours", ours)):
            taken = cpu_seconds(rule, leaves, do)
            if turn:
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "shape": shape,
        "seconds": {name: [min(values), medians[name], max(values)] for name, values in seconds.items()},
        "ratio": medians["theirs"] / medians["ours"],
        "bar": bar,
        "peak_bytes": {"theirs": peak_bytes(theirs, shape), "ours": peak_bytes(ours, shape)},
        "product_share": product_flops(shape) / medians["ours"] / rate,
    }


def linearity() -> list[dict[str, Any]]:
    rows = []
    for length in LENGTHS:
        leaves, do = inputs((1, length, 2, 96, 192))
        seconds = [cpu_seconds(ours, leaves, do) for _ in range(6)][1:]
        rows.append({"T": length, "microseconds_per_token": statistics.median(seconds) / length * 1e6})
    return rows


def show(console: Console, rows: list[dict[str, Any]], rate: float) -> None:
    table = Table(
        "B, T, H, K, V", title=f"forward + backward, CPU ms: median (least to most); {rate / 1e9:.0f} GFLOP/s"
    )
    for heading in ("transformers", "hybrid-ft", "ratio", "bar", "peak MB", "of theirs", "of the rate"):
        table.add_column(heading, justify="right")
    for row in rows:
        times = ["{1:.0f} ({0:.0f} to {2:.0f})".format(*(x * 1e3 for x in t)) for t in row["seconds"].values()]
        peak = {name: value / 1e6 for name, value in row["peak_bytes"].items()}
        table.add_row(
            ", ".join(map(str, row["shape"])),
            *times,
            f"{row['ratio']:.1f}",
            f"{row['bar']:.1f}",
            f"{peak['theirs']:.0f} / {peak['ours']:.0f}",
            f"{peak['ours'] / peak['theirs']:.2f}",
            f"{row['product_share']:.0%}",
        )
    console.print(table)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of the shapes, the smallest first")
    parser.set_defaults(out=common.RESULTS / "gated_delta_rule_cpu.jsonl")
    options = parser.parse_args()
    common.one_quiet_thread()
    check()
    rate = product_rate()
    rows = [measure(*case, rate) for case in SHAPES[: options.shapes]]
    lengths = linearity()
    console = Console(width=140)
    show(console, rows, rate)
    console.print(
        "µs per token, H = 2, 96 x 192: " + ", ".join(f"T {r['T']} {r['microseconds_per_token']:.1f}" for r in lengths)
    )
    stamp = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **machine(), "product_rate": rate}
    common.append(options.out, *({**stamp, **row} for row in [*rows, {"lengths": lengths}]))


if __name__ == "__main__":
    main()
