"""The GPU benchmarks in one table, with a bar for each row.

    python benchmarks/gpu [--out benchmarks/results/gpu.jsonl] [--parts op-1,layer-8] [--turns 20] [--seconds 300]

Each part runs in a process of its own, so that a crash costs its rows alone. A part whose results are wrong shows no
time. bfloat16 throughout, 32,768 tokens, shapes of Olmo Hybrid 7B, random weights, no network; both sides take turns in
one process and a number is the median (least to most). Needs torch and Triton; what else is missing is said in the
table. The exit status is 1 if a correctness check is red. --smoke goes through the code on a CPU, with tiny shapes.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rows import PARTS
from table import cells, lines, verdict

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "flash-linear-attention",
    "fla-core",
    "causal-conv1d",
    "tilelang",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "peft",
    "trl",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="append one JSON line per measured row")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of: %(default)s")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300, help="then a part takes 5 turns at least, and no more")
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which a part is stopped")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on the CPU; its numbers mean nothing")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--alone", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        use_this_checkout()
        child(options)
        return 0
    unknown = sorted(set(options.parts.split(",")) - set(PARTS))
    if unknown:
        parser.error(f"--parts: {unknown[0]!r} is none of {', '.join(PARTS)}")
    return measure_all(options)


def measure_all(options: argparse.Namespace) -> int:
    device, why_not = ("cpu (smoke)", "") if options.smoke else find_device()
    common = {"device": device, "smoke": options.smoke, "versions": versions()}
    body, red = [], False
    for name, part in PARTS.items():
        records: list[dict[str, Any] | None] = [None] * len(part.rows)
        if name in options.parts.split(",") and not why_not:
            print(f"{name} ...", file=sys.stderr, flush=True)
            records = list(run_part(name, options))
            red = red or any(record is not None and record.get("red", False) for record in records)
        for row, record in zip(part.rows, records):
            body.append(cells(row, record, judged=not options.smoke))
            if record is not None and options.out:
                met = None if options.smoke else verdict(row, record)
                line = {"row": row.name, "unit": row.unit, "bar": row.bar.text(row.unit), "met": met}
                append(options.out, common | {"time": datetime.now(UTC).isoformat()} | line | record)
    print(f"{device or why_not}: " + ", ".join(f"{name} {version}" for name, version in common["versions"].items()))
    if options.smoke:
        print("smoke: tiny shapes on a CPU; these numbers mean nothing")
    print("\n".join(lines(body)))
    return int(red)


def find_device() -> tuple[str, str]:
    """The GPU's name, or why nothing can be measured."""
    if importlib.util.find_spec("torch") is None:
        return "", "torch is not installed"
    import torch

    return (torch.cuda.get_device_name(), "") if torch.cuda.is_available() else ("", "no GPU")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def append(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")


def run_part(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Where their side may have broken the process that both share (a fault on the GPU, its memory filled), ours gets
    one of its own."""
    records = run_child(name, options)
    why = str(records[0].get("failed", ""))
    if not why or records[0].get("red") or why.endswith("is not installed"):
        return records
    return run_child(name, options, alone=f"with both: {why}")


def run_child(name: str, options: argparse.Namespace, alone: str = "") -> list[dict[str, Any]]:
    """A part's records, one for each of its rows; why there are none, if it fails in whatever way."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        command = [sys.executable, str(Path(__file__).parent), "--child", name, "--record", str(record)]
        command += ["--turns", str(options.turns), "--seconds", str(options.seconds), "--alone", alone]
        command += ["--smoke"] if options.smoke else []
        # a trainer of TRL refuses several GPUs, and with a network it might look for files
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        env = os.environ | {"CUDA_VISIBLE_DEVICES": first, "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=options.limit, check=False, env=env
            )
        except subprocess.TimeoutExpired:
            return failed(name, f"stopped after {options.limit:g} s")
        if record.exists():
            return json.loads(record.read_text())
    said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing said"]
    return failed(name, f"exit status {done.returncode}: {said[-1].strip()[:100]}")


def failed(name: str, why: str, **rest: Any) -> list[dict[str, Any]]:
    return [{"failed": why, **rest} for _ in PARTS[name].rows]


def use_this_checkout() -> None:
    """Make it the package ``hybrid_ft``, whether one is installed or not."""
    spec = importlib.util.spec_from_file_location(
        "hybrid_ft", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["hybrid_ft"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["hybrid_ft"])


def child(options: argparse.Namespace) -> None:
    """Measure one part and write its records."""
    part = PARTS[options.child]
    from common import Red, Setting, in_short

    setting = Setting(options.smoke, options.turns, options.seconds, options.alone)
    try:
        records = importlib.import_module(part.module).measure(setting, *part.arguments)
    except Red as wrong:
        records = failed(options.child, f"red: {wrong}", red=True)
    except Exception as error:  # noqa: BLE001
        records = failed(options.child, in_short(error))
    options.record.write_text(json.dumps(records))


if __name__ == "__main__":
    sys.exit(main())
