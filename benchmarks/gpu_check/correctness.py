"""Correctness on this GPU: the delta rule, repeatability, isolation, forks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from rows import Rows
from sizes import Sizes
from torch import Tensor

REPEATS = 50


def self_test(rows: Rows, dry: bool) -> None:
    from hybrid_ft.kernels.gated_delta_rule import self_test as tests

    if dry:
        tests.CASES[:] = tests.CASES[1:2]
    wrong = list(tests.self_test("cpu" if dry else "cuda"))
    rows.add("delta rule, outputs and gradients", "right" if not wrong else f"{len(wrong)} wrong", wrong=bool(wrong))
    for line in wrong[:20]:
        rows.add("delta rule", failed=line, wrong=True)


def self_test_assembled_anew(rows: Rows, dry: bool) -> None:
    """With CUDA's own ptxas, so that a fault of Triton's can be told from one of Triton's ptxas."""
    import os

    import launched
    import prebuild

    rows.add("ptxas", os.environ.get("TRITON_PTXAS_PATH", "Triton's own: CUDA's is not there"))
    prebuild._compile(rows, dry, {"self-test": launched.self_test}, False)
    self_test(rows, dry)


def same_bits(rows: Rows, dry: bool) -> None:
    """At full size, where every multiprocessor is busy and a race has its chance."""
    from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule

    sizes, device = Sizes(dry), "cpu" if dry else "cuda"
    for sequences in (8, 1):
        inputs, do, edges = sizes.delta_rule_inputs(sequences, device)
        if dry:
            for x in [*inputs, do]:
                x.detach().zero_()

        def run(inputs: Any = inputs, do: Any = do, edges: Any = edges) -> list[Tensor]:
            o = gated_delta_rule(*inputs, cu_seqlens=edges)[0]
            return [o.detach(), *torch.autograd.grad(o, inputs, do)]

        first, differing = run(), set()
        for _ in range(2 if dry else REPEATS):
            again = run()
            names = ("o", "dq", "dk", "dv", "dg", "dbeta")
            differing |= {name for name, x, y in zip(names, first, again) if not torch.equal(x, y)}
        said = "the same" if not differing else f"{', '.join(sorted(differing))} differ"
        rows.add(f"bits of {REPEATS} runs, {sequences} sequences", said, wrong=bool(differing))


LENGTHS = [70, 1, 3, 64, 130, 200]
TREE = ([65, 3, 64, 1, 2, 20, 40], [-1, 0, 0, 1, 1, 3, -1])


def isolation(rows: Rows, dry: bool) -> None:
    """The bundled model in bfloat16: packed documents against each alone, a tree against its paths, both beside float64
    on the same weights. Packing and forking may cost at most twice what bfloat16 costs by itself."""
    import hybrid_ft
    from hybrid_ft.hybrid_model.door.layout import tree_layout

    device = "cpu" if dry else "cuda"
    narrow = hybrid_ft.load("tiny", dtype="float32" if dry else "bfloat16").to(device)
    exact = copy.deepcopy(narrow).to("cpu").double()
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(2, 1000, (n,), generator=generator) for n in LENGTHS]

    def packed(model: Any) -> Tensor:
        ids = torch.cat(documents)[None]
        positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
        where = next(model.parameters()).device
        return model(input_ids=ids.to(where), position_ids=positions.to(where), use_cache=False).logits[0]

    def alone(model: Any) -> Tensor:
        where = next(model.parameters()).device
        return torch.cat([model(input_ids=row[None].to(where), use_cache=False).logits[0] for row in documents])

    lengths, parents = TREE
    tokens = [torch.randint(2, 1000, (n,), generator=generator) for n in lengths]

    def path(segment: int) -> list[int]:
        return [] if segment < 0 else [*path(parents[segment]), segment]

    def forked(model: Any) -> Tensor:
        where = next(model.parameters()).device
        layout, order = tree_layout(lengths, parents, device=where)
        order = order.to(where)
        logits = model(torch.cat(tokens).to(where)[order][None], layout=layout).logits[0]
        return torch.empty_like(logits).index_copy(0, order, logits)

    def separate(model: Any) -> Tensor:
        where = next(model.parameters()).device
        found = []
        for segment, length in enumerate(lengths):
            row = torch.cat([tokens[s] for s in path(segment)])
            found.append(model(input_ids=row[None].to(where), use_cache=False).logits[0, -length:])
        return torch.cat(found)

    for name, together, apart in (("packed", packed, alone), ("forked", forked, separate)):
        with rows.attempt(name, wrong=True):
            truth, true_gradients = _with_gradients(exact, apart)
            own, own_gradients = _with_gradients(narrow, apart)
            got, gradients = _with_gradients(narrow, together)
            for what, t, a, b in (("logits", truth, own, got), ("gradients", true_gradients, own_gradients, gradients)):
                error, limit = _relative(b, t), 2 * _relative(a, t)
                wrong = not error <= max(limit, 1e-12)
                rows.add(
                    f"{name}, {what}: error over bfloat16's own",
                    error / max(limit / 2, 1e-12),
                    "x",
                    floor=2.0,
                    wrong=wrong,
                )
            _, repeated = _with_gradients(narrow, together)
            same = torch.equal(repeated, gradients)
            rows.add(f"{name}, gradients again", "the same bits" if same else "other bits", wrong=not same)


def _with_gradients(model: Any, logits_of: Any) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    logits = logits_of(model)
    weights = torch.linspace(0.5, 1.5, logits.shape[0], device=logits.device, dtype=torch.float32)
    (logits.float() if logits.dtype != torch.float64 else logits).log_softmax(-1)[:, 5].mul(weights).sum().backward()
    return logits.detach().cpu().double(), torch.cat(
        [p.grad.flatten().cpu().double() for p in model.parameters() if p.grad is not None]
    )


def _relative(x: Tensor, true: Tensor) -> float:
    return float((x - true).norm() / true.norm())
