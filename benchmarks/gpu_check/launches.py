"""Times of each launch, the whole op, its host side, and other settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from launched import forward_and_backward
from recording import Launch, pretending, recorded
from rows import Rows
from sizes import Sizes, bytes_of, tensors_of
from timing import in_graph, milliseconds, on_host
from variants import as_launched, variants

BYTES_PER_MS = 4.3e9
# Bytes that a launch moves, each touched once, for 32,768 tokens, in GB: arguments that it only writes over included,
# those that it does not read (the states of a chunk that another launch writes) left out; what a program reads again it
# has from the cache.
MOVED = {
    "weights_kernel": 0.67,
    "forward_kernel": 1.40,
    "backward_kernel": 3.61,
    "query_kernel": 2.05,
    "key_kernel": 2.62,
}


def delta_rule(rows: Rows, dry: bool) -> None:
    """Everything as it is launched first; other settings, of which one may end the process, after that."""
    sizes, device, made = Sizes(dry), "cpu" if dry else "cuda", {}
    for sequences in (8, 1):
        label = f"{sequences} sequence{'s' * (sequences != 1)}"
        given = sizes.delta_rule_inputs(sequences, device)
        with rows.attempt(f"{label}: launches", wrong=True):
            made[label] = _distinct(_launches(given, dry))
            for launch in made[label]:
                own = as_launched(launch) if len(variants(launch)) > 1 else ""
                _one(rows, label, launch, own, "as launched", dry)
        if not dry:
            _whole(rows, label, given)
    if not dry:
        _host(rows)
    for label, launches in made.items():
        for launch in launches:
            if label.startswith("8") or launch.name.startswith("summary"):
                for words, changed in variants(launch):
                    if words not in ("", as_launched(launch)):
                        _one(rows, label, changed, words, "" if dry else _apart(launch, changed), dry)


def _distinct(launches: list[Launch]) -> list[Launch]:
    """The first of each kernel."""
    return list({launch.name: launch for launch in reversed(launches)}.values())[::-1]


def _launches(given: tuple[list[torch.Tensor], torch.Tensor, torch.Tensor], dry: bool) -> list[Launch]:
    if dry:
        with pretending(), recorded(run=False) as launches:
            forward_and_backward(*given)
    else:
        with recorded(run=True) as launches:
            forward_and_backward(*given)
        torch.cuda.synchronize()
    return launches


def _whole(rows: Rows, label: str, given: tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]) -> None:
    from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule

    times = graphs(gated_delta_rule, *given)
    for name, taken in times.items():
        floor = {"forward": 0.27, "backward": 0.72}[name]
        rows.add(f"{label}: {name}", taken, "ms", floor=floor, note="CUDA graph")


def graphs(
    rule: Callable[..., Any], inputs: list[torch.Tensor], do: torch.Tensor, edges: torch.Tensor
) -> dict[str, float]:
    """Milliseconds of forward and of backward, each as a graph replays it."""
    stream = torch.cuda.Stream()
    with torch.no_grad():
        forward = in_graph(lambda: rule(*inputs, cu_seqlens=edges)[0])
    # backward runs on forward's stream, which must be the one that the graph is captured from
    with torch.cuda.stream(stream):
        o = rule(*inputs, cu_seqlens=edges)[0]
        torch.autograd.grad(o, inputs, do, retain_graph=True)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            torch.autograd.grad(o, inputs, do, retain_graph=True)
    return {"forward": forward, "backward": milliseconds(graph.replay, 10)}


def _one(rows: Rows, label: str, launch: Launch, words: str, note: str, dry: bool) -> None:
    name = ", ".join(filter(None, [f"{label}: {launch.name}", words]))
    with rows.attempt(name):
        taken = 1.0 if dry else in_graph(launch)
        gb = MOVED.get(launch.name)
        if gb:
            note = "; ".join(filter(None, [note, f"{gb / taken:.2f} TB/s"]))
        rows.add(name, taken, "ms", floor=gb and gb * 1e9 / BYTES_PER_MS, note=note)


def _apart(launch: Launch, changed: Launch) -> str:
    """How far the results of other settings are from these, the largest relative error in L2 of any tensor."""
    try:
        tensors = tensors_of(launch.args)
        before = [x.clone() for x in tensors]
        launch()
        wanted = [x.clone() for x in tensors]
        for x, kept in zip(tensors, before):
            x.copy_(kept)
        changed()
        return f"apart by {max(_error(x, y) for x, y in zip(tensors, wanted)):.0e}"
    except Exception as error:  # noqa: BLE001
        return f"not compared: {type(error).__name__}"


def _error(x: torch.Tensor, wanted: torch.Tensor) -> float:
    there = wanted.isfinite()
    if not x.is_floating_point() or not there.any():
        return 0.0
    x, wanted = x[there].float(), wanted[there].float()
    return float((x - wanted).norm() / wanted.norm().clamp_min(1e-30))


def _host(rows: Rows) -> None:
    """Of a call so small that the GPU keeps up."""
    from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule

    sizes = Sizes(False)
    sizes.tokens = 512
    given = sizes.delta_rule_inputs(8, "cuda")
    inputs, _, edges = given
    rows.add("host: forward", on_host(lambda: gated_delta_rule(*inputs, cu_seqlens=edges)), "ms", floor=0.3)
    rows.add("host: forward and backward", on_host(partial(forward_and_backward, *given)), "ms", floor=0.8)


def layer_kernels(rows: Rows, dry: bool) -> None:
    """The share of the memory's rate that the kernels reach whose time is their bytes."""
    for name, leaves, call in Sizes(dry).layer_kernels("cpu" if dry else "cuda"):
        with rows.attempt(name, wrong=True):
            if dry:
                with pretending(), recorded(run=False) as launches:
                    y = call()
                    torch.autograd.grad(y, leaves, torch.empty_like(y))
            else:
                with recorded(run=True) as launches:
                    y = call()
                    torch.autograd.grad(y, leaves, torch.ones_like(y))
            for launch in launches:
                title = f"{name}: {launch.name}"
                taken = 1.0 if dry else in_graph(launch)
                moved = bytes_of(launch.args)
                rows.add(title, taken, "ms", floor=moved / BYTES_PER_MS, note=f"{moved / taken / 1e9:.2f} TB/s")
