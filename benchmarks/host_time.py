"""Host time of a delta rule call: Python, torch and Triton's launcher.

    python benchmarks/host_time.py [--turns 100]

The launches go through Triton's own launcher into a driver that runs nothing (tests/kernels/libcuda.c; it needs a C
compiler), so that no GPU is needed. Processor time, the least of the turns and their median; the first is what
remains on a machine that is busy otherwise. The call is a layer's of Olmo Hybrid 7B on 4,352 tokens; with two heads a
sequence is cut into pieces, which takes more launches. What torch does on tensors counts as it takes on a CPU, and
memory comes from the heap and stays there, as a GPU's stays with torch. Not in it: what CUDA's driver takes for a
launch, and choosing the device.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests" / "kernels"), str(ROOT / "benchmarks" / "gpu_check")]

from libraries import use_this_checkout

TOKENS = 4352
# heads, sequences
CALLS = ((30, 8), (30, 1), (2, 1))
# milliseconds that a call may take, so that small micro-batches do not wait for the host
BARS = {"forward": 0.3, "forward and backward": 0.8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=100)
    options = parser.parse_args()
    use_this_checkout()
    import torch
    import triton
    from launched import Config, Driver, build
    from recording import pretending
    from sizes import Sizes
    from triton.backends.nvidia import driver as nvidia

    from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule

    torch.set_num_threads(1)
    keep_memory()
    arrived: list[int] = []

    @ctypes.CFUNCTYPE(None, ctypes.POINTER(Config), ctypes.POINTER(ctypes.c_void_p))
    def arrive(config: object, parameters: object) -> None:
        arrived.append(1)

    with tempfile.TemporaryDirectory() as folder, pretending():
        library = build(Path(folder) / "libcuda.so.1")
        library.on_launch(arrive)
        os.environ["TRITON_LIBCUDA_PATH"] = folder
        for found in (nvidia.libcuda_dirs, nvidia.library_dirs):
            found.cache_clear()
        sizes = Sizes(False)
        sizes.tokens = TOKENS
        with mock.patch.object(triton.runtime.driver, "_active", Driver()):
            for sizes.H, sequences in CALLS:
                inputs, do, edges = sizes.delta_rule_inputs(sequences, "cpu")
                forward = lambda: gated_delta_rule(*inputs, cu_seqlens=edges)[0]  # noqa: B023
                both = lambda: torch.autograd.grad(forward(), inputs, do)  # noqa: B023
                for name, call in (("forward", forward), ("forward and backward", both)):
                    arrived.clear()
                    taken = milliseconds(call, options.turns)
                    launches = len(arrived) // (options.turns + 3)
                    told = f"{sizes.H} heads, {sequences} sequence{'s' * (sequences != 1)}, {name}: "
                    told += f"{min(taken):.2f} ms, median {statistics.median(taken):.2f}, {launches} launches"
                    print(f"{told} (bar {BARS[name]} ms)", flush=True)


def keep_memory() -> None:
    """No block is taken from the kernel, or given back to it, by a call of its own: M_MMAP_MAX, M_TRIM_THRESHOLD."""
    c = ctypes.CDLL(None)
    c.mallopt(-4, 0)
    c.mallopt(-1, 2**31 - 1)


def milliseconds(call: Callable[[], object], turns: int) -> list[float]:
    for _ in range(3):
        call()
    taken = []
    for _ in range(turns):
        began = time.process_time()
        call()
        taken.append((time.process_time() - began) * 1e3)
    return taken


if __name__ == "__main__":
    main()
