"""Held-out loss of a recipe by optimizer: float32 AdamW, and adamw_bf16.

    python benchmarks/cpu/optimizers.py quickstart/sft [--seeds 5] [KEY=VALUE ...]

Both sides are whole runs of the command in bfloat16 arithmetic, taken in turns, on the same rows in the same order for
each seed. What is told: the held-out losses of the results, their spread over the seeds, and the mean and standard
error of the difference of the two in a seed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import common

KINDS = ("adamw", "adamw_bf16")


def held_out(recipe: str, kind: str, seed: int, keys: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        given = [f"train.optimizer={kind}", f"train.seed={seed}", "model.dtype=bfloat16", f"output={folder}/run"]
        command = [sys.executable, "-m", "hybrid_ft.cli", "sft", recipe, *keys, *given]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return float(json.loads((Path(folder) / "run/run.json").read_text())["finished"]["held_out"]["loss"])


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("recipe")
    parser.add_argument("keys", nargs="*", help="of the recipe, for both sides")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    losses: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in range(options.seeds):
        for kind in KINDS[:: 1 if seed % 2 else -1]:
            losses[kind].append(held_out(options.recipe, kind, seed, options.keys))
        print(seed, *(f"{kind} {losses[kind][-1]:.4f}" for kind in KINDS), flush=True)
    differences = [two - one for one, two in zip(*losses.values(), strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    for kind, found in losses.items():
        print(f"{kind:12} {statistics.mean(found):.4f}, standard deviation over seeds {statistics.stdev(found):.4f}")
    print(f"difference   {statistics.mean(differences):+.4f}, standard error {error:.4f}")
    record = {"recipe": options.recipe, "keys": options.keys, "held_out_loss": losses} | common.versions()
    common.append(options.out, record)


if __name__ == "__main__":
    main()
