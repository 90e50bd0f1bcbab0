"""What is printed: the rows, their bars, and nothing that was not measured."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench_runs import printed_rows


@pytest.mark.slow
def test_without_a_gpu_nothing_is_measured(root: Path, tmp_path: Path, bench: SimpleNamespace) -> None:
    out = tmp_path / "gpu.jsonl"
    command = [sys.executable, str(root / "benchmarks" / "gpu"), "--out", str(out)]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("no GPU: ")
    for line in printed_rows(bench, run.stdout).values():
        assert line.count("not measured") == 2
        assert not line.rstrip().endswith(("yes", "no"))
    assert not out.exists()


@pytest.mark.parametrize(
    ("row", "ours", "theirs", "met"),
    [
        ("op-1.forward", 0.85, 9.0, True),
        ("op-1.forward", 0.86, 9.0, False),
        ("op-1.both", 1.0, 2.0, True),
        ("op-1.both", 1.0, 1.9, False),
        ("op-1.both", 1.0, "fla is not installed", None),
        ("layer-1.memory", 0.7, 1.0, True),
        ("layer-1.memory", 0.8, 1.0, False),
        ("decode-1", 3.0, 2.0, True),
        ("decode-1", 2.0, 3.0, False),
    ],
)
def test_bars(bench: SimpleNamespace, row: str, ours: float, theirs: float | str, met: bool | None) -> None:
    (found,) = (r for part in bench.rows.PARTS.values() for r in part.rows if r.name == row)
    other = theirs if isinstance(theirs, str) else [theirs]
    record = bench.common.record([ours], other, more_is_better=found.more_is_better)
    assert bench.table.verdict(found, record) is met
    assert bench.table.cells(found, record)[5] == {True: "yes", False: "no", None: ""}[met]


@pytest.mark.parametrize(
    ("card", "share"),
    [
        ("NVIDIA H200", 0.4),
        ("NVIDIA H100 80GB HBM3", 0.4),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA B200", None),
    ],
)
def test_the_share_of_peak_is_told_of_known_cards_alone(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, card: str, share: float | None
) -> None:
    monkeypatch.setattr(bench.step.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench.step.torch.cuda, "get_device_name", lambda: card)
    made: dict[str, Any] = {}
    taken = bench.common.Taken(phases=[[500.0], [1000.0], [2500.0]])
    said = bench.step._use(taken, int(0.4 * 989e12), made, "ours")
    assert made.get("ours_mfu") == (None if share is None else pytest.approx(share))
    assert said == ("MFU not known" if share is None else "MFU 40%")


@pytest.mark.slow
def test_smoke_goes_through_every_part(root: Path, tmp_path: Path, bench: SimpleNamespace) -> None:
    out = tmp_path / "gpu.jsonl"
    command = [sys.executable, str(root / "benchmarks" / "gpu"), "--smoke", "--turns", "1", "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = printed_rows(bench, run.stdout)
    for name, line in rows.items():
        assert ("1 turn" in line) is not name.endswith("memory"), line
    records = {record["row"]: record for record in map(json.loads, out.read_text().splitlines())}
    assert set(records) == set(rows)
    named = ("full", "lora", "decode", "attention", "log-probs")
    assert all(records[name]["ratio"] > 0 for name in rows if name.startswith(named))
    assert all("TRL's SFTTrainer on both sides" in rows[name] for name in rows if name.startswith(("full", "lora")))
