"""Both sides of a part compute the same, each in its own way."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_attention_has_what_may_run_it_beside_it(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each computes what the model's own call does: flex attention and, by stand-ins, torch's
    kernel and flash-attn 2."""
    import torch
    from torch.nn.attention import varlen

    from hybrid_ft.hybrid_model.door.layout import build_layout
    from hybrid_ft.hybrid_model.layers.attention import segment_attention

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

    from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer

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
