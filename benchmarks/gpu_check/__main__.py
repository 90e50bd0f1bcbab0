"""The GPU check: two parts of under five minutes, the most valuable first.

    python benchmarks/gpu_check --part 1 [--out FOLDER] [--seconds 285] [--steps compile,self-test] [--dry]

Each step is a process of its own with a time limit; a row is written to FOLDER/gpu_check.jsonl as soon as it is
measured, so that a step that fails or a machine that is taken away loses no other. The table at the end is also in
FOLDER/gpu_check_PART.txt, what the steps said in FOLDER/gpu_check_PART.log. Libraries that the machine lacks are read
from .gpu-check/, which scripts/gpu_check_wheels.py fills. --dry goes through all of it on a CPU, with tiny shapes. The
exit status is 1 if a result is wrong. See docs/gpu-check.md.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from libraries import ROOT, environment, unpack, use_this_checkout
from rows import Rows, read_rows
from steps import STEPS, Step
from table import table

LEAST = 5.0  # seconds: with fewer left a step is not begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=(1, 2), default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--seconds", type=float, default=285, help="for the whole part")
    parser.add_argument("--steps", help="some of the part's, by name")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU; its numbers mean nothing")
    parser.add_argument("--step", choices=[step.name for step in STEPS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        return child(options)
    return run_part(options)


def run_part(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.seconds
    steps = [step for step in STEPS if step.part == options.part]
    wanted = options.steps.split(",") if options.steps else [step.name for step in steps]
    if unknown := sorted(set(wanted) - {step.name for step in steps}):
        sys.exit(f"--steps: {unknown[0]!r} must be one of {', '.join(step.name for step in steps)}")
    options.out.mkdir(parents=True, exist_ok=True)
    began = len(read_rows(options.out))
    rows = Rows(options.out, options.part, "check")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        unpack(Path(folder))
        try:
            for step in steps:
                if step.name in wanted:
                    run_step(step, options, Path(folder), deadline, rows)
        finally:
            found = read_rows(options.out)[began:]
            text = table(found)
            (options.out / f"gpu_check_{options.part}.txt").write_text(text + "\n", encoding="utf-8")
            print(text, flush=True)
    return int(any(row.get("wrong") for row in found))


def run_step(step: Step, options: argparse.Namespace, libraries: Path, deadline: float, rows: Rows) -> None:
    limit = min(step.limit * (20 if options.dry else 1), deadline - time.monotonic())
    if limit < LEAST:
        rows.add(step.name, failed="not begun: the part's time is used up")
        return
    here = str(Path(__file__).resolve().parent)
    command = [sys.executable, here, "--step", step.name, "--part", str(options.part), "--out", str(options.out)]
    began = time.monotonic()
    status: Any = None
    with (options.out / f"gpu_check_{options.part}.log").open("a", encoding="utf-8") as log:
        log.write(f"\n== {step.name}\n")
        log.flush()
        process = subprocess.Popen(
            [*command, *(["--dry"] if options.dry else [])],
            stdout=log,
            stderr=log,
            env=environment(libraries, step.rivals) | step.environment(),
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = time.monotonic() - began
    if status == 0:
        rows.add(f"{step.name}: whole step", seconds, "s")
    else:
        why = f"stopped after {limit:.0f} s" if status is None else f"exit status {status}, see the log"
        rows.add(f"{step.name}: whole step", failed=why, wrong=status is not None)


def child(options: argparse.Namespace) -> int:
    """One step, in this process."""
    use_this_checkout()
    step = next(step for step in STEPS if (step.part, step.name) == (options.part, options.step))
    rows = Rows(options.out, options.part, step.name)
    getattr(importlib.import_module(step.module), step.function)(rows, options.dry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
