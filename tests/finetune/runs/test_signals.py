"""When a run stops before its end: numbers that are none, and signals."""

import json
import os
import signal
from typing import Any

import pytest
import torch
from run_helpers import rows_in, wrap_loss
from safetensors.torch import load_file
from transformers import Trainer

from hybrid_ft.errors import InputError


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_number_that_is_none_stops_the_run_before_the_step(start, tmp_path, monkeypatch, what):
    """In the second micro-batch of step 4; the optimizer has taken 3 steps then, and takes no other."""
    of_step: list[list[tuple[int, ...]]] = []

    def spoil(trainer: Any, inputs: dict[str, Any], loss: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step != 3:
            return loss
        of_step.append(rows_in(inputs))
        if len(of_step) < 2:
            return loss
        if what == "gradient norm":
            loss.register_hook(lambda gradient: gradient * float("inf"))
            return loss
        return loss * float("nan")

    stepped: list[int] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *args: stepped.append(1) or step(self, *args))
    wrap_loss(monkeypatch, spoil)
    with pytest.raises(InputError, match=f"step 4: the {what} is (nan|inf)") as caught:
        start(train={"accumulation": 2, "save_every": 1, "steps": 8})
    assert caught.value.status == 4 and len(stepped) == 3
    named = json.loads((tmp_path / "run/not-finite-step-4.json").read_text())["rows"]
    by_origin = {row["origin"]: tuple(row["input_ids"]) for row in start.prepared.train}
    assert [by_origin[name] for name in named] == [row for rows in of_step for row in rows]
    assert named[0] in str(caught.value) and "checkpoint-3" in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-3"]
    weights = load_file(tmp_path / "run/checkpoints/checkpoint-3/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert not (tmp_path / "run/model").exists()


@pytest.mark.parametrize(("in_a_row", "status"), [(2, 0), (4, 4)])
def test_an_overflow_in_bfloat16_is_left_out_and_counted(start, monkeypatch, in_a_row, status):
    """One infinite gradient norm is no step; more than three in a row are no accident."""
    before: dict[int, list[torch.Tensor]] = {}

    def spoil(trainer: Any, inputs: dict[str, Any], loss: torch.Tensor) -> torch.Tensor:
        step = trainer.state.global_step + 1
        before[step] = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        if 3 <= step < 3 + in_a_row:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    wrap_loss(monkeypatch, spoil)
    # infinity times a gradient of zero is no number; here every weight's gradient is infinite
    monkeypatch.setattr(Trainer, "_get_grad_norm", lambda self, model, grad_norm=None: overflow(grad_norm))
    if status:
        with pytest.raises(InputError, match="step 6: the gradient norm is inf") as caught:
            start(model={"dtype": "bfloat16"}, train={"steps": 8, "learning_rate": 1e-3})
        assert caught.value.status == status
        return
    run = start(model={"dtype": "bfloat16"}, train={"steps": 8, "learning_rate": 1e-3})
    assert run.status == 0
    assert run.metrics("skipped") == {3: 1, 4: 1}
    assert sorted(run.metrics("grad_norm")) == [1, 2, 5, 6, 7, 8]
    assert all(torch.equal(one, other) for one, other in zip(before[3], before[5], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(before[5], before[6], strict=True))


def overflow(norm: torch.Tensor) -> torch.Tensor:
    """What a bfloat16 sum of squares makes of huge gradients, where float32 has a NaN from a zero among them."""
    return torch.full_like(norm, float("inf")) if torch.isnan(norm) else norm


def test_a_signal_before_training_leaves_nothing(start, tmp_path, monkeypatch):
    from hybrid_ft.finetune import models

    monkeypatch.setattr(models, "load_model", lambda *args, **how: os.kill(os.getpid(), signal.SIGTERM))
    run = start()
    assert run.status == 75
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_exporting_is_resumable(start, monkeypatch):
    from hybrid_ft.finetune.runs.export import Exporter

    with monkeypatch.context() as patched:
        patched.setattr(Exporter, "whole", lambda *args: os.kill(os.getpid(), signal.SIGINT))
        assert start().status == 75
    again = start()
    assert again.status == 0 and "going on from checkpoint-6" in again.screen


def test_signals_are_the_callers_again_afterwards(start):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    start(train={"steps": 1})
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_an_ignored_signal_stays_ignored():
    """As under nohup."""
    from hybrid_ft.finetune.runs.signals import StopRequest

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.now
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_signal_ends_the_process_at_once():
    from hybrid_ft.finetune.runs.signals import StopRequest

    child = os.fork()
    if child == 0:
        with StopRequest().listening() as stop, stop.at_step_ends():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.now
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGINT
