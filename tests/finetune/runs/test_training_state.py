"""What a checkpoint keeps beside the weights: read back as it was, and refused where it is not all there."""

import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import get_scheduler

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs import training_state
from hybrid_ft.finetune.runs.processes import Processes


@pytest.fixture
def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    return stepped(3)


def stepped(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3))
    model[1].bias.requires_grad = False
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 5)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def test_random_states_go_on_as_they_would_have(tmp_path):
    """After an odd number of normal numbers, of which Python and numpy keep one."""

    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.randn(), np.random.rand(), float(torch.randn(()))]

    draw()
    training_state.save_random(tmp_path, Processes())
    expected = [draw() for _ in range(700)]  # past the 624 words of a twister
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert draw() != expected[0]
    training_state.load_random(tmp_path, rank=0)
    assert [draw() for _ in range(700)] == expected


@pytest.mark.parametrize("piece", [2 * 10**9, 100])
def test_moments_are_put_back_bit_for_bit_from_one_file_or_many(tmp_path, trained, monkeypatch, piece):
    monkeypatch.setattr(training_state, "PIECE", piece)
    model, optimizer = trained
    training_state.save_optimizer(optimizer, model, tmp_path, Processes())
    assert (len(list(tmp_path.glob("optimizer-*"))) > 1) == (piece == 100)
    other, fresh = stepped(1)
    training_state.load_optimizer(fresh, other, tmp_path)
    kept = {name: optimizer.state[parameter] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(kept) == 3
    for name, parameter in other.named_parameters():
        if parameter.requires_grad:
            assert fresh.state[parameter].keys() == kept[name].keys()
            assert all(torch.equal(fresh.state[parameter][key], kept[name][key]) for key in kept[name])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("0.weight.exp_avg_sq"), "exp_avg_sq of 0.weight is missing"),
        (lambda tensors: tensors.pop("1.weight.step"), "step of 1.weight is missing"),
        (lambda tensors: tensors.update({"2.weight.exp_avg": torch.zeros(1)}), "2.weight.exp_avg is not of this model"),
        (lambda tensors: tensors.update({"0.bias.exp_avg": torch.zeros(9)}), r"exp_avg of 0.bias is \[9\]"),
    ],
)
def test_moments_that_are_not_all_there_are_refused(tmp_path, trained, change, told):
    model, optimizer = trained
    training_state.save_optimizer(optimizer, model, tmp_path, Processes())
    tensors = load_file(tmp_path / training_state.FIRST_OPTIMIZER)
    change(tensors)
    save_file(tensors, tmp_path / training_state.FIRST_OPTIMIZER)
    with pytest.raises(InputError, match=told):
        training_state.load_optimizer(optimizer, model, tmp_path)


def test_a_schedule_goes_on_at_its_step_with_the_rates_of_the_recipe(tmp_path, trained):
    """The same rate to the last bit, and another one where the recipe's has changed and that was accepted."""

    def made(rate: float, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate)
        schedule = get_scheduler("cosine", optimizer, num_warmup_steps=3, num_training_steps=20)
        for _ in range(steps):
            optimizer.step()
            schedule.step()
        return schedule

    for steps in (0, 2, 11):
        training_state.save_schedule(made(0.1, steps), tmp_path)
        resumed = made(0.1, 0)
        training_state.load_schedule(resumed, tmp_path)
        for _ in range(3):
            assert (
                resumed.optimizer.param_groups[0]["lr"] == made(0.1, steps).get_last_lr()[0] == resumed.get_last_lr()[0]
            )
            resumed.optimizer.step()
            resumed.step()
            steps += 1
    lower = made(0.05, 0)
    training_state.load_schedule(lower, tmp_path)
    assert lower.get_last_lr() == made(0.05, 11).get_last_lr()
    (tmp_path / training_state.SCHEDULE).write_text("[]")
    with pytest.raises(InputError, match=r"scheduler.json: is damaged"):
        training_state.load_schedule(lower, tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"{}", b'{"steps": "x"}', b"[]"], ids=["empty", "zeros", "object", "text", "list"]
)
@pytest.mark.parametrize("name", ["optimizer-00001.safetensors", "random_state.safetensors", "scheduler.json"])
def test_files_that_were_damaged_before_they_were_listed_are_told(tmp_path, trained, name, content):
    model, optimizer = trained
    schedule = get_scheduler("linear", optimizer, 0, 10)
    training_state.save_optimizer(optimizer, model, tmp_path, Processes())
    training_state.save_schedule(schedule, tmp_path)
    training_state.save_random(tmp_path, Processes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: is damaged; the run cannot go on from here"):
        training_state.load_optimizer(optimizer, model, tmp_path)
        training_state.load_schedule(schedule, tmp_path)
        training_state.load_random(tmp_path, 0)


def test_random_states_that_are_not_all_there_are_told(tmp_path):
    training_state.save_random(tmp_path, Processes())
    file = tmp_path / "random_state.safetensors"
    saved = load_file(file)
    for name in saved:
        save_file({other: value for other, value in saved.items() if other != name}, file)
        with pytest.raises(InputError, match="is damaged"):
            training_state.load_random(tmp_path, 0)
