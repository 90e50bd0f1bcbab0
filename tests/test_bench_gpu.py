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

MODULES = (
    "rows",
    "table",
    "common",
    "checks",
    "theirs",
    "delta_rule",
    "linearity",
    "layer",
    "attention",
    "log_probs",
    "trainers",
    "step",
    "decode",
)
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


@pytest.mark.parametrize(
    ("part", "module", "function", "said"),
    [
        ("attention-8", "hybrid_model.attention", "segment_attention", "red: attention: o is off by"),
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


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_attention_has_what_may_run_it_beside_it(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each computes what the model's own call does: flex attention and, by stand-ins, torch's kernel and flash-attn 2."""
    import torch
    from torch.nn.attention import varlen

    from hybrid_ft.hybrid_model.attention import segment_attention
    from hybrid_ft.hybrid_model.layout import build_layout

    lengths = bench.attention.unequal(128, 8)
    assert sum(lengths) == 128 and len(set(lengths)) == 8
    layout, scale = build_layout(lengths), 0.3
    q, k, v = (torch.randn(128, 2, 16) for _ in range(3))
    true = segment_attention(q, k, v, layout, scale)

    def stand_in(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, **options: Any) -> Any:
        assert options in ({"scale": 0.3, "window_size": (-1, 0)}, {"softmax_scale": 0.3, "causal": True})
        assert torch.equal(cu_q, layout.cu_seqlens) and torch.equal(cu_k, cu_q) and max_q == max_k == max(lengths)
        return segment_attention(q, k, v, layout, scale)

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert list(bench.attention.alternatives(layout, scale)) == ["varlen_attn"]
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=stand_in))
    found = bench.attention.alternatives(layout, scale)
    assert list(found) == ["varlen_attn", "flash_attn"]
    for function in found.values():
        assert torch.equal(function(q, k, v), true)
    flex = bench.attention.flex(bench.common.Setting(True, 1, 1), lengths)
    # as one length says it: the default scale
    default = segment_attention(q, k, v, layout, 16**-0.5)
    torch.testing.assert_close(flex(q, k, v), default)


def test_both_sides_of_the_log_probs_compute_the_same(bench: SimpleNamespace) -> None:
    import torch

    hidden, weight = torch.randn(20, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    targets, up = torch.randint(50, (20,)), torch.randn(20)
    results = []
    for function in (bench.log_probs.token_log_probs, bench.log_probs.trl_kernel()):
        log_probs, entropy = function(hidden, weight, targets)[:2]
        results.append([log_probs, entropy, *torch.autograd.grad(log_probs, (hidden, weight), up)])
    for ours, trl in zip(*results):
        torch.testing.assert_close(ours, trl, rtol=1e-4, atol=1e-5)


def both_models(bench: SimpleNamespace, lora: bool) -> tuple[Any, dict[str, Any], Any]:
    """The setting, what a step is made of on each side, in float32, and ids of two documents."""
    import torch

    import hybrid_ft

    torch.manual_seed(0)
    setting = bench.common.Setting(True, 1, 60)
    ours = hybrid_ft.load("tiny", from_scratch=True, dtype="float32")
    models = {"ours": ours, "theirs": bench.theirs.model_like(ours)}
    shared = None if lora else torch.optim.SGD(ours.parameters(), lr=0.0)
    ready = {name: (model, *bench.step.prepare(model, shared)) for name, model in models.items()}
    return setting, ready, torch.randint(2, ours.config.vocab_size, (2, 24))


def gradients(turn: Any, model: Any) -> Any:
    import torch

    turn(lambda: None)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA"])
def test_a_step_is_the_same_in_trls_trainer_on_both_sides_and_in_the_loop(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    """One direction of the gradient, from a packed batch, a padded one and the plain loop; the trainers clip."""
    import torch

    from hybrid_ft.finetune.sft_trainer import PackedSFTTrainer

    trainers: dict[str, Any] = {}
    make = bench.trainers.Trainers.of

    def noted(self: Any, name: str, model: Any) -> Any:
        return trainers.setdefault(name, make(self, name, model))

    monkeypatch.setattr(bench.trainers.Trainers, "of", noted)
    setting, ready, ids = both_models(bench, lora)
    if lora:  # not as fresh adapters are, half of whose gradients are zero
        for name, ours in ready["ours"][1].named_parameters():
            if "lora_B" in name:
                ours.data.normal_(std=0.02)
        for ours, theirs in zip(ready["ours"][1].parameters(), ready["theirs"][1].parameters(), strict=True):
            theirs.data.copy_(ours.data)
        for _, _, optimizer in ready.values():
            optimizer.param_groups[0]["lr"] = 0.0
    loops = {name: bench.step.in_loop(model, ids, optimizer) for name, (model, _, optimizer) in ready.items()}
    sides, said = bench.step.in_trainers(setting, ready, ids, tmp_path)
    assert said == "TRL's SFTTrainer on both sides" and list(sides) == ["ours", "theirs"]
    assert isinstance(trainers["ours"], PackedSFTTrainer) and type(trainers["theirs"]).__name__ == "SFTTrainer"
    found = {
        f"{name}, {where}": gradients(turn, ready[name][1])
        for where, turns in (("loop", loops), ("TRL", sides))
        for name, turn in turns.items()
    }
    assert all(0 < g.norm() < 1.001 for name, g in found.items() if name.endswith("TRL"))
    true = found["theirs, loop"]
    for name, g in found.items():
        assert torch.dot(g, true) / g.norm() / true.norm() > 1 - 1e-5, name


def test_a_step_has_a_packed_batch_here_and_a_padded_one_there(bench: SimpleNamespace, tmp_path: Path) -> None:
    setting, ready, ids = both_models(bench, False)
    trainers = bench.trainers.Trainers(setting, ids, tmp_path)
    steps = {name: bench.trainers.Step(trainers.of(name, model), o) for name, (_, model, o) in ready.items()}
    assert steps["ours"].batch["input_ids"].flatten().tolist() == ids.flatten().tolist()
    assert steps["ours"].batch["input_ids"].shape == (1, 48) and steps["theirs"].batch["input_ids"].shape == (2, 24)
    assert steps["ours"].batch["position_ids"].flatten().tolist() == [*range(24), *range(24)]
    assert int(steps["ours"].trained) == int(steps["theirs"].trained) == 46
    losses = [step.loss() for step in steps.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and 5 < losses[0] < 9


def test_first_losses_that_differ_are_told(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([7.0, 7.08])
    monkeypatch.setattr(bench.step.Step, "loss", lambda self: next(losses))
    _, said = bench.step.in_trainers(*both_models(bench, False), tmp_path)
    assert said.endswith("SFTTrainer on both sides, whose first losses differ: ours 7.000, theirs 7.080")


@pytest.mark.parametrize("missing", ["trl", "datasets"])
def test_without_trl_the_step_is_a_plain_loop(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    sides, said = bench.step.in_trainers(*both_models(bench, False), tmp_path)
    assert sides == {} and said == f"{missing} is not installed: plain loop on both sides"


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
