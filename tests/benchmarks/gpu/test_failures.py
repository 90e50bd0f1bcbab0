"""What is wrong or fails has no time, and costs its own rows alone."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench_runs import in_process, options_for, printed_rows

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


@pytest.mark.parametrize(
    ("part", "module", "function", "said"),
    [
        ("attention-8", "hybrid_model.layers.attention", "segment_attention", "red: attention: o is off by"),
        ("log-probs", "kernels.token_log_probs", "token_log_probs", "red: token log-probabilities: log p is off by"),
    ],
)
def test_a_wrong_op_shows_no_time(
    bench: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    part: str,
    module: str,
    function: str,
    said: str,
) -> None:
    in_process(bench, tmp_path, monkeypatch)
    owner = importlib.import_module(f"hybrid_ft.{module}")
    right = getattr(owner, function)

    def wrong(*args: Any) -> Any:
        result = right(*args)
        return (1.1 * result[0], *result[1:]) if isinstance(result, tuple) else 1.1 * result

    monkeypatch.setattr(owner, function, wrong)
    assert bench.main.measure_all(options_for(part)) == 1
    line = printed_rows(bench, capsys.readouterr().out)[part]
    assert said in line and "turn" not in line


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


@pytest.mark.parametrize(("given", "seen"), [(None, "0"), ("2,3", "2"), ("", "")])
def test_a_child_sees_one_gpu_and_no_hub(
    bench: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    seen: str,
) -> None:
    """TRL's trainers refuse several."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "[$CUDA_VISIBLE_DEVICES] $HF_HUB_OFFLINE" >&2; exit 1\n')
    script.chmod(0o755)
    monkeypatch.setattr(bench.main.sys, "executable", str(script))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    (record,) = bench.main.run_child("full-1", options_for("full-1"))
    assert record["failed"] == f"exit status 1: [{seen}] 1"


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
