"""The values that a model starts with stand in it for a while, and then its own again."""

import pytest
import torch

from hybrid_ft.finetune.training.starting_values import StartingValues


def test_they_are_put_in_and_taken_out_whatever_happens() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    model[0].weight.requires_grad_(False)
    begin = {name: value.clone() for name, value in model.state_dict().items()}
    started = StartingValues(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    later = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        with pytest.raises(KeyError), started.put_in():
            now = model.state_dict()
            for name in begin:
                assert torch.equal(now[name], (later if name == "0.weight" else begin)[name])
            raise KeyError
        assert all(torch.equal(value, later[name]) for name, value in model.state_dict().items())
