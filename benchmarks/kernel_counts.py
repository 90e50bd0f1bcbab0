"""Registers, spilled bytes and programs per multiprocessor of the delta rule's kernels.

    python benchmarks/kernel_counts.py [--arch 90] [--sequences 8] [--heads 30 96 192] [--variants]

No GPU is needed: the launches of one forward and backward in bfloat16 over 32,768 tokens are recorded and compiled
for an architecture. HBM is what a launch's tensors weigh, each touched once, over 4.3 TB/s. --variants compiles
other settings as well.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parent / "gpu_check"))

from libraries import use_this_checkout

KIB = 1024
# of one multiprocessor: registers of each of its quarters, shared memory, what a program is charged beside
# its own, warps
REGISTERS, SHARED, CHARGED, WARPS = 16384, 228 * KIB, KIB, 64


class Counts(NamedTuple):
    """Of one compiled kernel."""

    warps: int
    registers: int
    spilled: int
    shared: int
    instructions: int

    @property
    def programs(self) -> int:
        """That a multiprocessor of Hopper holds at once."""
        per_warp = -(-self.registers * 32 // 256) * 256
        by_registers = 4 * (REGISTERS // per_warp) // self.warps
        return min(by_registers, SHARED // (self.shared + CHARGED), WARPS // self.warps, 32)


def counts(compiled: Any) -> Counts:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        usage, sass = (
            subprocess.run([tool, option, file], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    number = {name: int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL")}  # type: ignore[index]
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", sass, re.MULTILINE))
    metadata = compiled.metadata
    return Counts(metadata.num_warps, number["REG"], number["STACK"] + number["LOCAL"], metadata.shared, instructions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--heads", type=int, nargs=3, default=(30, 96, 192), metavar=("H", "K", "V"))
    parser.add_argument("--variants", action="store_true")
    options = parser.parse_args()
    use_this_checkout()
    from launched import forward_and_backward
    from launches import BYTES_PER_MS
    from recording import pretending, recorded
    from sizes import Sizes, bytes_of
    from variants import as_launched, variants

    sizes = Sizes(False)
    sizes.H, sizes.K, sizes.V = options.heads
    print("| kernel | settings | registers | spilled | shared KiB | programs | instructions | HBM ms |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with pretending(options.arch):
        with recorded(run=False) as launches:
            forward_and_backward(*sizes.delta_rule_inputs(options.sequences, "cpu"))
        for launch in launches:
            own = as_launched(launch)
            others = [pair for pair in variants(launch) if pair[0] not in ("", own)] if options.variants else []
            for words, tried in [(own, launch), *others]:
                made = counts(tried.kernel.run(*tried.args, grid=tried.grid, warmup=True, **tried.options))
                told = [
                    made.registers,
                    f"{made.spilled} B",
                    f"{made.shared / KIB:.0f}",
                    made.programs,
                    made.instructions,
                ]
                row = [launch.name, words, *told, f"{bytes_of(launch.args) / BYTES_PER_MS:.2f}"]
                print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
