"""Muon: which parameters are whose, beside torch's two optimizers apart, resume to the bit, pieces beside the whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import stopping
from safetensors.torch import load_file

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.training.muon import MuonAdamW, muon_of

ADAMW = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def test_matrices_of_layers_are_muons(tiny_base: Path) -> None:
    model = hybrid_ft.load(tiny_base)
    optimizer = muon_of(model, **ADAMW)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muons, matrices, vectors = ({names[id(one)] for one in group["params"]} for group in optimizer.param_groups)
    assert muons == {
        name
        for name, parameter in model.named_parameters()
        if ".layers." in name and name.endswith("proj.weight") and parameter.ndim == 2
    }
    assert matrices == {
        name for name in names.values() if "embed_tokens" in name or "lm_head" in name or "conv1d" in name
    }
    assert len(muons) + len(matrices) + len(vectors) == len(names)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
    parameter = optimizer.param_groups[0]["params"][0]
    assert optimizer.state_names(parameter) == ("momentum_buffer",)
    assert optimizer.state_names(model.lm_head.weight) == ("exp_avg", "exp_avg_sq", "step")


def test_it_is_torchs_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over steps with a schedule, and over a saved state in between; torch's own in float64 throughout."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)  # what torch's orthogonalizes in
    shapes = (6, 4), (4, 6), (1, 5), (5,)

    def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
        generator = torch.Generator().manual_seed(0)
        return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]

    *matrices, vector = parameters(torch.float64)
    of_torch = (
        torch.optim.Muon(matrices, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([vector], **ADAMW),
    )
    ours = parameters(torch.float32)
    optimizer: Any = MuonAdamW(ours[:3], [{"params": ours[3:]}], **ADAMW)
    for number in range(6):
        generator = torch.Generator().manual_seed(number)
        for one, other in zip((*matrices, vector), ours, strict=True):
            other.grad = torch.randn(one.shape, generator=generator)
            one.grad = other.grad.double()
        for each in (*of_torch, optimizer):
            for group in each.param_groups:
                group["lr"] = 0.1 / (number + 1)
            each.step()
        if number == 2:
            again: Any = MuonAdamW(ours[:3], [{"params": ours[3:]}], **ADAMW)
            again.load_state_dict(optimizer.state_dict())
            optimizer = again
    for one, other, start in zip((*matrices, vector), ours, parameters(torch.float64), strict=True):
        moved = one - start
        assert (other - one).norm() <= 1e-5 * moved.norm()


TRAIN = {"optimizer": "muon", "learning_rate": 2e-3}


def test_a_run_resumes_to_the_bit(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = start("whole", model={"lora": None}, train=TRAIN)
    assert whole.status == 0, whole.screen

    with stopping(monkeypatch, after=2):
        assert start("cut", model={"lora": None}, train=TRAIN).status == 75
    resumed = start("cut", model={"lora": None}, train=TRAIN)
    assert resumed.status == 0 and "going on from checkpoint-" in resumed.screen
    last = max((whole.folder / "checkpoints").glob("checkpoint-*")).name
    for name in ("model.safetensors", "optimizer-00001.safetensors"):
        one, two = (load_file(run.folder / "checkpoints" / last / name) for run in (whole, resumed))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert {key.rpartition(".")[2] for key in one} == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}


def test_adapters_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "r.yaml").write_text("model: {path: tiny, lora: {}}\ndata: {sources: [{path: rows.jsonl}]}\n")
    with pytest.raises(InputError, match="train.optimizer: got muon; .*all weights"):
        load_recipe("r.yaml", ["train.optimizer=muon"])
