"""The gated delta rule on one GPU, forward and backward in bfloat16, beside flash-linear-attention where it is installed.

    python benchmarks/gated_delta_rule_gpu.py [--out benchmarks/results/gated_delta_rule_gpu.jsonl]

Both sides take turns in one process, both with the l2 norm of q and k inside; a time is the GPU's own, median of 25
turns with the fastest and slowest beside it. The floor is the larger of the bytes that must be moved over the memory's
rate and the products over the tensor cores' rate, both counted by hand for an H200. Nothing is printed if the op fails
its self-test.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule
from hybrid_ft.kernels.gated_delta_rule.self_test import self_test

TOKENS, HEADS, KEY_DIM, VALUE_DIM = 32768, 30, 96, 192
BYTES_PER_SECOND, FLOPS_PER_SECOND = 4.3e12, 790e12
# Inputs and outputs once, and 64-token products, per token and head: forward; backward without and with its own states.
FORWARD_BYTES, FORWARD_FLOPS = 1160, 12.6e6 / 64
BACKWARD_BYTES, BACKWARD_FLOPS = 1936, 30e6 / 64
TURNS = 25

Op = Callable[..., Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="append one JSON line per measurement")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: not measured")
        return
    wrong = list(self_test("cuda"))
    if wrong:
        sys.exit("\n".join(["the self-test is red; nothing is measured", *wrong]))
    device = torch.cuda.get_device_name()
    table = Table("sequences", "pass", "ours, ms", "of the floor", "fla, ms", "ratio", title=device)
    for sequences in (1, 8):
        for record in measure(sequences):
            record |= {"device": device, "time": datetime.now(UTC).isoformat(), "versions": versions()}
            table.add_row(*row(record))
            if args.out:
                with args.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(record) + "\n")
    Console().print(table)


def measure(sequences: int) -> list[dict[str, Any]]:
    inputs, do, cu_seqlens = make_inputs(sequences)
    sides: dict[str, Op] = {"ours": ours}
    theirs = flash_linear_attention()
    if theirs is not None:
        sides["fla"] = theirs
    times: dict[tuple[str, str], list[float]] = {(side, part): [] for side in sides for part in ("forward", "backward")}
    for turn in range(TURNS + 3):
        for side, op in sides.items():
            forward, backward = one_turn(op, inputs, do, cu_seqlens)
            if turn >= 3:  # the first compile
                times[side, "forward"].append(forward)
                times[side, "backward"].append(backward)
    work = TOKENS * HEADS
    floors = {
        "forward": max(FORWARD_BYTES * work / BYTES_PER_SECOND, FORWARD_FLOPS * work / FLOPS_PER_SECOND) * 1e3,
        "backward": max(BACKWARD_BYTES * work / BYTES_PER_SECOND, BACKWARD_FLOPS * work / FLOPS_PER_SECOND) * 1e3,
    }
    return [
        {"sequences": sequences, "pass": part, "floor_ms": floors[part]}
        | {f"{side}_ms": spread(times[side, part]) for side in sides}
        for part in ("forward", "backward")
    ]


def make_inputs(sequences: int) -> tuple[list[Tensor], Tensor, Tensor]:
    gen = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(1, TOKENS, HEADS, *shape, generator=gen, device="cuda")

    q, k = (random(KEY_DIM).bfloat16() for _ in range(2))
    v, do = (random(VALUE_DIM).bfloat16() for _ in range(2))
    g, beta = -0.2 * random().sigmoid(), 2 * random().sigmoid()
    edges = torch.arange(sequences + 1, device="cuda", dtype=torch.int32) * (TOKENS // sequences)
    return [x.requires_grad_() for x in (q, k, v, g, beta)], do, edges


def one_turn(op: Op, inputs: list[Tensor], do: Tensor, cu_seqlens: Tensor) -> tuple[float, float]:
    """Milliseconds of forward and of backward."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    marks[0].record()
    o = op(*inputs, cu_seqlens)
    marks[1].record()
    torch.autograd.grad(o, inputs, do)
    marks[2].record()
    torch.cuda.synchronize()
    return marks[0].elapsed_time(marks[1]), marks[1].elapsed_time(marks[2])


def ours(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, cu_seqlens: Tensor) -> Tensor:
    return gated_delta_rule(q, k, v, g, beta, cu_seqlens=cu_seqlens)[0]


def flash_linear_attention() -> Op | None:
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    except ImportError:
        return None

    def op(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, cu_seqlens: Tensor) -> Tensor:
        return chunk_gated_delta_rule(q, k, v, g, beta, cu_seqlens=cu_seqlens, use_qk_l2norm_in_kernel=True)[0]

    return op


def spread(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "least": min(times), "most": max(times)}


def versions() -> dict[str, str]:
    import triton

    return {"torch": torch.__version__, "triton": triton.__version__}


def row(record: dict[str, Any]) -> list[str]:
    times = record["ours_ms"]
    cells = [
        str(record["sequences"]),
        record["pass"],
        f"{times['median']:.2f} ({times['least']:.2f}-{times['most']:.2f})",
    ]
    cells.append(f"{record['floor_ms'] / times['median']:.0%}")
    if "fla_ms" not in record:
        return [*cells, "not installed", ""]
    theirs = record["fla_ms"]["median"]
    return [*cells, f"{theirs:.2f}", f"{theirs / times['median']:.2f}x"]


if __name__ == "__main__":
    main()
