"""A checkpoint's weights: the bits that were saved, all of them, or a refusal that names the first other one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs import weights
from hybrid_ft.hybrid_model.adapters import add_lora


def test_weights_must_be_all_there(tmp_path: Path, tiny_base: Path) -> None:
    model = add_lora(hybrid_ft.load(tiny_base), "all-linear", 4, 8, 0.0)
    weights.save(model, tmp_path)
    tensors = load_file(tmp_path / weights.ADAPTER)
    first = min(tensors)
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, tmp_path / weights.ADAPTER)
    with pytest.raises(InputError, match="missing in this checkpoint"):
        weights.load_into(model, tmp_path)
    save_file(tensors | {first: tensors[first].double()}, tmp_path / weights.ADAPTER)
    with pytest.raises(InputError, match="float64"):
        weights.load_into(model, tmp_path)
    save_file(tensors | {"another": tensors[first].clone()}, tmp_path / weights.ADAPTER)
    with pytest.raises(InputError, match="another is not of this model, but in this checkpoint"):
        weights.load_into(model, tmp_path)
    (tmp_path / weights.ADAPTER).write_bytes(b"none")
    with pytest.raises(
        InputError, match=r"adapter_model.safetensors: not a safetensors file .*; remove this checkpoint"
    ):
        weights.load_into(model, tmp_path)


@pytest.mark.parametrize("rank", [None, 2])
def test_what_is_refused_changes_nothing(tmp_path: Path, tiny_base: Path, rank: int | None) -> None:
    made = [hybrid_ft.load(tiny_base) for _ in range(2)]
    saved, model = made if rank is None else (add_lora(one, rank=rank + n) for n, one in enumerate(made))
    weights.save(saved.double() if rank is None else saved, tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if rank is None:
        model.lm_head = torch.nn.Linear(model.config.hidden_size, 5, bias=False)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=r"is float32\[.*\] in this checkpoint, float32\[.*\] in the model"):
        weights.load_into(model, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_bfloat16_weights_keep_what_stays_in_float32(tmp_path: Path, tiny_base: Path) -> None:
    """An export of such a model writes its decays in bfloat16; a run that goes on must not."""
    model, other = (hybrid_ft.load(tiny_base, dtype=torch.bfloat16) for _ in range(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
    weights.save(model, tmp_path)
    weights.load_into(other, tmp_path)
    there = other.state_dict()
    assert {tensor.dtype for tensor in there.values()} == {torch.float32, torch.bfloat16}
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == there[name].dtype and torch.equal(tensor, there[name]), name


def test_one_number_that_is_not_finite_is_found(tiny_base: Path) -> None:
    model = hybrid_ft.load(tiny_base)
    assert weights.are_finite(model.parameters())
    for bad in (float("inf"), float("nan")):
        last = list(model.parameters())[-1]
        with torch.no_grad():
            last.view(-1)[-1] = bad
        assert not weights.are_finite(model.parameters())
