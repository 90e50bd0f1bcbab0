"""The GPU's benchmark without a GPU: what it prints when there is nothing to measure, when something is wrong or fails,
and, with --smoke, its whole way but for the GPU's clock."""

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

MODULES = ("rows", "table", "common", "checks", "theirs", "delta_rule", "linearity", "layer", "attention", "log_probs", "trainers", "step", "decode")
STAND_IN = """
import torch
from fla.ops.common import chunk_o
from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k):
        return k.clone()

    @staticmethod
    def backward(ctx, dk):
        if not chunk_o.TRITON_ABOVE_3_7_1:
            raise RuntimeError("incorrect results")
        return 1.5 * dk

def chunk_gated_delta_rule(q, k, v, g, beta, use_qk_l2norm_in_kernel=False, **options):
    return gated_delta_rule(q, Backward.apply(k), v, g, beta, use_qk_l2norm=use_qk_l2norm_in_kernel, **options)
"""


@pytest.fixture
def bench(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The folder's modules, and ``run``, which prints the table from children in this process."""
    folder = root / "benchmarks" / "gpu"
    monkeypatch.syspath_prepend(str(folder))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("bench_gpu_main", folder / "__main__.py")
    assert spec is not None and spec.loader is not None
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    modules = {name: importlib.import_module(name) for name in MODULES}
    yield SimpleNamespace(main=main, **modules)
    for name in MODULES:
        sys.modules.pop(name, None)


def options_for(parts: str, **changed: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"parts": parts, "smoke": True, "turns": 2, "seconds": 60, "limit": 60, "out": None} | changed
    )


def in_process(bench: SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_child(name: str, options: argparse.Namespace, alone: str = "") -> list[dict[str, Any]]:
        options.child, options.record, options.alone = name, folder / "record.json", alone
        bench.main.child(options)
        return json.loads(options.record.read_text())

    monkeypatch.setattr(bench.main, "run_child", run_child)


def printed_rows(bench: SimpleNamespace, text: str) -> dict[str, str]:
    """The table's line of each row; every row has one, and only one."""
    found = {}
    for part in bench.rows.PARTS.values():
        for row in part.rows:
            (line,) = (line for line in text.splitlines() if line.startswith(f"{row.label}  "))
            found[row.name] = line[len(row.label) :]
    return found


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


def test_a_red_check_shows_no_time(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_process(bench, tmp_path, monkeypatch)
    monkeypatch.setattr(bench.checks, "self_test", lambda device: iter(["dk is off by 3e-1, more than 1e-2"]))
    assert bench.main.measure_all(options_for("op-8,linearity")) == 1
    rows = printed_rows(bench, capsys.readouterr().out)
    for name in ("op-8.forward", "op-8.backward", "op-8.both", "linearity"):
        assert "red: dk is off by 3e-1" in rows[name]
        assert "turn" not in rows[name] and "ms (" not in rows[name]


def test_a_wrong_rival_is_timed_and_its_error_stands_beside(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for fla whose backward refuses, as fla's does, and gives a wrong dk once it runs."""
    in_process(bench, tmp_path, monkeypatch)
    monkeypatch.setattr(bench.checks, "self_test", lambda device: iter(()))
    for folder in ("fla", "fla/ops", "fla/ops/common", "fla/ops/gated_delta_rule"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "fla/ops/common/chunk_o.py").write_text("TRITON_ABOVE_3_7_1 = False\n")
    (tmp_path / "fla/ops/gated_delta_rule/__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "gpu.jsonl"
    try:
        assert bench.main.measure_all(options_for("op-8", out=out)) == 0
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "fla"]:
            del sys.modules[name]
    rows = printed_rows(bench, capsys.readouterr().out)
    assert "dk off by 5e-01" in rows["op-8.backward"]
    assert "dv off" not in rows["op-8.backward"] and "o off" not in rows["op-8.backward"]
    record = json.loads(out.read_text().splitlines()[2])
    assert record["row"] == "op-8.both" and record["turns"] == 2
    assert record["ratio"] > 0 and record["theirs"]["median"] > 0
    assert record["device"] == "cpu (smoke)" and record["met"] is None
    assert {"python", "torch", "triton", "transformers", "fla-core"} <= set(record["versions"])


def test_a_child_that_dies_costs_its_rows_alone(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\ncase \"$*\" in *op-1*) echo 'CUDA error: misaligned' >&2; kill -9 $$;; *op-8*) exec sleep 60;; esac\n"
        'for word; do last=$word; [ "$previous" = --record ] && record=$word; previous=$word; done\n'
        'echo \'[{"ours": {"median": 5, "least": 5, "most": 5}, "theirs": "not compared", "turns": 1}]\' > "$record"\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(bench.main.sys, "executable", str(script))
    assert bench.main.measure_all(options_for("op-1,op-8,linearity", limit=1)) == 0
    rows = printed_rows(bench, capsys.readouterr().out)
    assert "exit status -9: CUDA error: misaligned" in rows["op-1.forward"]
    assert "stopped after 1 s" in rows["op-8.both"]
    assert "5.00 % apart" in rows["linearity"]


def test_a_process_that_both_sides_broke_is_tried_with_ours_alone(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_process(bench, tmp_path, monkeypatch)
    monkeypatch.setattr(bench.checks, "self_test", lambda device: iter(()))
    take = bench.delta_rule.side_by_side

    def broken(setting: Any, sides: dict[str, Any]) -> Any:
        if "theirs" in sides:
            raise RuntimeError("CUDA error: an illegal memory access\nmore")
        return take(setting, sides)

    monkeypatch.setattr(bench.delta_rule, "side_by_side", broken)
    monkeypatch.setattr(bench.theirs, "delta_rule", lambda: bench.delta_rule.gated_delta_rule)
    assert bench.main.measure_all(options_for("op-8")) == 0
    line = printed_rows(bench, capsys.readouterr().out)["op-8.both"]
    assert "with both: RuntimeError: CUDA error: an illegal memory access" in line
    assert "2 turns" in line


def test_what_fails_on_their_side_costs_theirs_alone(bench: SimpleNamespace) -> None:
    def good(mark: Any) -> None:
        mark()

    def bad(mark: Any) -> None:
        raise ModuleNotFoundError(name="fla.ops")

    setting = bench.common.Setting(True, 3, 60)
    taken = bench.common.side_by_side(setting, {"ours": good, "theirs": bad})
    assert len(taken["ours"].phases) == 3
    assert taken["theirs"].failed == "fla is not installed" and taken["theirs"].phases == []
    with pytest.raises(ModuleNotFoundError):
        bench.common.side_by_side(setting, {"ours": bad, "theirs": good})


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
    assert all(records[name]["ratio"] > 0 for name in rows if name.startswith(("full", "lora", "decode")))
