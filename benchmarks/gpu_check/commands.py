"""The commands of a user: SFT, DPO, a resumed run, quick tests, memcheck."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from libraries import ROOT, link_checkout
from rows import Rows

DPO = """
data:
  sources:
    - path: datasets/quickstart/preferences.jsonl
  max_length: 192
dpo:
  loss: apo_zero
  beta: 0.5
  pairs_per_step: 16
train:
  batch_tokens: 4096
  learning_rate: 0.0007
"""


def train(rows: Rows, dry: bool) -> None:
    """20 steps each; on a GPU the product chooses bfloat16 by itself. The DPO and the stopped run share the GPU."""
    steps = 3 if dry else 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = link_checkout(folder)
        sft = ["sft", "quickstart/sft", f"train.steps={steps}", "model.dtype=bfloat16"]
        _trained(rows, "SFT", folder / "sft", path, [*sft, f"train.save_every={steps}"], steps)
        recipe = folder / "dpo.yaml"
        recipe.write_text(f"model:\n  path: {folder / 'sft' / 'model'}\n  dtype: bfloat16{DPO}  steps: {steps}\n")
        with ThreadPoolExecutor() as pool:
            dpo = pool.submit(_trained, rows, "DPO", folder / "dpo", path, ["dpo", str(recipe)], steps)
            stopped = pool.submit(_resumed, rows, folder, path, [*sft, "train.save_every=1"], steps)
            dpo.result(), stopped.result()


def _command(path: Path, arguments: list[str], output: Path) -> subprocess.Popen[str]:
    paths = [str(path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "hybrid_ft.cli", *arguments, f"output={output}"],
        cwd=output.parent, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _trained(rows: Rows, label: str, output: Path, path: Path, arguments: list[str], steps: int) -> None:
    began = time.monotonic()
    process = _command(path, arguments, output)
    said = process.communicate()[0]
    print(said, flush=True)
    losses = _losses(output)
    if process.returncode or len(losses) != steps:
        last = (said.strip().splitlines() or ["nothing said"])[-1]
        rows.add(label, failed=f"exit status {process.returncode}, {len(losses)} steps: {last}"[:300], wrong=True)
        return
    rows.add(f"{label}, {steps} steps", time.monotonic() - began, "s", note=f"loss {losses[0]:.3f} to {losses[-1]:.3f}")
    rate = re.findall(r"([\d,]+) tokens/s", said)
    if rate:
        rows.add(f"{label}, last rate on the screen", float(rate[-1].replace(",", "")), "tokens/s")


def _losses(output: Path) -> list[float]:
    file = output / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line["loss"] for line in lines if "loss" in line and "step" in line]


def _resumed(rows: Rows, folder: Path, path: Path, arguments: list[str], steps: int) -> None:
    """Stopped half-way by a signal and resumed, against the run that was not."""
    output = folder / "stopped"
    process = _command(path, arguments, output)
    deadline = time.monotonic() + 60
    while process.poll() is None and len(_losses(output)) < steps // 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    print(process.communicate()[0], flush=True)
    first, at = process.returncode, len(_losses(output))
    again = _command(path, arguments, output)
    print(again.communicate()[0], flush=True)
    wanted, got = _losses(folder / "sft"), _losses(output)
    said = "the same losses, bit for bit" if wanted == got else f"losses differ, the last {got[-1:]} for {wanted[-1:]}"
    note = f"stopped with status {first} after {at} steps, resumed with {again.returncode}"
    wrong = again.returncode != 0 or len(got) != steps
    rows.add("resume", said if not wrong else f"{len(got)} of {steps} steps", note=note, wrong=wrong)


def quick_tests(rows: Rows, dry: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(link_checkout(Path(folder))), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "pytest", "--confcutdir=tests", "-q", "-p", "no:cacheprovider", "-m", "quick"]
        # another torch's warnings are no fault of the kernels; side by side, since kernels are compiled one at a time
        command += ["-W", "default", *(["--collect-only"] if dry else [])]
        command += map(str, sorted((ROOT / "tests" / "kernels").rglob("test_triton*.py")))
        command += ["-n", "6"] if find_spec("xdist") and not dry else []
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "2"}
        env["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # some ask for deterministic algorithms
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, flush=True)
    for line in re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE)[:20]:
        rows.add("quick tests", failed=line[:200], wrong=True)
    last = (done.stdout.strip().splitlines() or ["nothing said"])[-1]
    rows.add("quick tests", last.strip("= "), wrong=done.returncode != 0)


def memcheck(rows: Rows, dry: bool) -> None:
    """One small case of the delta rule under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or next(
        iter(map(str, Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))), None
    )
    command: list[Any] = [sys.executable, str(Path(__file__).with_name("small_case.py")), *(["--dry"] if dry else [])]
    if not dry:
        if tool is None:
            rows.add("memcheck", failed="compute-sanitizer is not installed")
            return
        command = [tool, "--tool", "memcheck", "--error-exitcode", "9", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    summary = (re.findall(r"ERROR SUMMARY: .*", done.stdout) or [f"exit status {done.returncode}"])[-1]
    rows.add("memcheck", summary, wrong=done.returncode == 9 or (dry and done.returncode != 0))
