"""GPU times without the host: replays of a CUDA graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

BATCHES = 5


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Of one call, the median of some batches of ``repeats`` calls, whatever part of it is the host's."""
    if not torch.cuda.is_available():
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) * 1e3
    call()
    taken = []
    for _ in range(BATCHES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end) / repeats)
    return statistics.median(taken)


def in_graph(call: Callable[[], object], repeats: int = 10) -> float:
    """Milliseconds of one call as a CUDA graph replays it. It is run once before, to compile."""
    if not torch.cuda.is_available():
        return milliseconds(call, 1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(repeats):
            call()
    return milliseconds(graph.replay, 1) / repeats


def on_host(call: Callable[[], object], repeats: int = 20) -> float:
    """Milliseconds until a call returns, the GPU's own work apart: the least of several, each with an idle GPU."""
    call()
    taken = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        taken.append((time.perf_counter() - began) * 1e3)
    return min(taken)
