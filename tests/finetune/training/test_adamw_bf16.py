"""AdamW on bfloat16 weights: near float32's, unbiased, and the same again."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_trace import trace
from run_helpers import stopping
from safetensors.torch import load_file

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.training.adamw_bf16 import CHUNK, AdamWBF16
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config
from hybrid_ft.kernels.adamw_bf16.reference import joined, rounded, split

BF16 = torch.bfloat16


def kept(wide: torch.Tensor, noise: torch.Tensor | int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    weight, low = torch.empty_like(wide, dtype=BF16), torch.empty_like(wide, dtype=torch.int8)
    split(wide, torch.as_tensor(noise, dtype=torch.int32).expand(wide.shape), weight, low)
    return weight, low


def test_the_weight_is_the_nearest_bfloat16_of_what_is_kept() -> None:
    torch.manual_seed(0)
    wide = torch.cat(
        (torch.randn(100_000) * 10.0 ** torch.randint(-30, 30, (100_000,)), torch.tensor([0.0, -0.0, 1.0]))
    )
    weight, low = kept(wide)
    back = joined(weight, low)
    assert torch.equal(back, (wide.view(torch.int32) >> 8 << 8).view(torch.float32))  # 24 of 32 bits
    ulp = (weight.float() * 2.0**-8).abs()
    assert ((back - weight.float()).abs() <= ulp).all()
    near = back.to(BF16) == weight
    assert near.float().mean() > 0.99  # the rest lies half-way, where torch takes the even one
    assert (((back - back.to(BF16).float()).abs() == (back - weight.float()).abs()) | near).all()


def test_rounding_is_unbiased() -> None:
    """Over every pattern of random bits, the mean is what was rounded."""
    wide = torch.tensor([0.02, -1.234567, 3e-9, 7e20], dtype=torch.float32)
    every = torch.arange(2**16, dtype=torch.int32).unsqueeze(1)
    found = rounded(wide.expand(2**16, 4), every)
    assert torch.equal(found, found.to(BF16).float())
    assert torch.allclose(found.double().mean(0), wide.double(), rtol=1e-7, atol=0)
    back = joined(*kept(wide.expand(2**8, 4).contiguous(), every[: 2**8]))
    assert torch.allclose(back.double().mean(0), wide.double(), rtol=1e-7, atol=0)


def steps(make: Any, dtype: torch.dtype, count: int, size: int = 4096, rate: float = 2.5e-5) -> torch.Tensor:
    """Weights of 0.02 after steps with gradients that agree a little."""
    torch.manual_seed(1)
    start = (0.02 * torch.randn(size)).to(BF16)
    weight = torch.nn.Parameter(start.to(dtype, copy=True))
    optimizer = make([weight], lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    push = torch.randn(size)
    for _ in range(count):
        weight.grad = (push + 3 * torch.randn(size)).to(BF16).to(dtype)
        optimizer.step()
    state = optimizer.state[weight]
    return (joined(weight.data, state["low"]) if "low" in state else weight.data) - start.float()


def test_small_steps_add_up_as_in_float32() -> None:
    wanted = steps(torch.optim.AdamW, torch.float32, 300)
    found = steps(AdamWBF16, BF16, 300)
    assert (found - wanted).norm() / wanted.norm() < 0.01
    in_place = steps(torch.optim.AdamW, BF16, 300)
    assert (in_place - wanted).norm() / wanted.norm() > 0.2  # what the extra bits are for


def test_float32_numbers_are_torchs() -> None:
    wanted, found = (steps(make, torch.float32, 20) for make in (torch.optim.AdamW, AdamWBF16))
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-9)


def test_chunks_change_nothing_but_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    import hybrid_ft.finetune.training.adamw_bf16 as module

    whole = steps(AdamWBF16, BF16, 20)
    monkeypatch.setattr(module, "CHUNK", 1000)
    assert (steps(AdamWBF16, BF16, 20) - whole).norm() / whole.norm() < 0.02
    assert CHUNK > 4096


def test_noise_is_of_seed_parameter_and_step() -> None:
    def after(seed: int, count: int = 2) -> list[torch.Tensor]:
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.full((512,), 0.02, dtype=BF16)) for _ in range(2)]
        optimizer = AdamWBF16(weights, lr=1e-5, seed=seed)
        for _ in range(count):
            for weight in weights:
                weight.grad = torch.full((512,), 0.3, dtype=BF16)
            optimizer.step()
            torch.rand(7)  # the global generator has no part in it
        return [joined(weight.data, optimizer.state[weight]["low"]) for weight in weights]

    one, again, other = after(1), after(1), after(2)
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one[0], one[1]) and not torch.equal(one[0], other[0])


def test_on_a_gpu_one_kernel_takes_each_bfloat16_weight(as_on_a_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from hybrid_ft.kernels.adamw_bf16.gpu import launch

    calls: list[Any] = []
    monkeypatch.setattr(launch, "triton_update", lambda *given: calls.append(given))
    weights = [torch.nn.Parameter(torch.ones(3, 4, dtype=dtype)) for dtype in (BF16, torch.float32, BF16)]
    optimizer = AdamWBF16(weights, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    with as_on_a_gpu():
        optimizer.step()
    assert [given[0].data_ptr() for given in calls] == [weights[0].data_ptr(), weights[2].data_ptr()]
    assert calls[0][5] != calls[1][5] and calls[0][6].kept == 1 - 1e-3
    assert (weights[1] < 1).all()  # torch's operations


MODEL = {"lora": None}
TRAIN = {"optimizer": "adamw_bf16", "learning_rate": 2e-3}


def test_a_run_resumes_to_the_bit(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = start("whole", model=MODEL, train=TRAIN)
    assert whole.status == 0, whole.screen

    with stopping(monkeypatch, after=2):
        assert start("cut", model=MODEL, train=TRAIN).status == 75
    resumed = start("cut", model=MODEL, train=TRAIN)
    assert resumed.status == 0 and "going on from checkpoint-" in resumed.screen
    last = max((whole.folder / "checkpoints").glob("checkpoint-*")).name
    for name in ("model.safetensors", "optimizer-00001.safetensors"):
        one, two = (load_file(run.folder / "checkpoints" / last / name) for run in (whole, resumed))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
        wide = {key.rpartition(".")[2] for key, tensor in one.items() if tensor.dtype == torch.float32}
        assert wide <= {"A_log", "dt_bias", "exp_avg", "exp_avg_sq", "step"}
    low = [tensor for key, tensor in one.items() if key.endswith(".low")]
    assert low and all(tensor.dtype == torch.int8 and tensor.any() for tensor in low)
    weights = sum(tensor.numel() for tensor in low)
    assert sum(tensor.numel() * tensor.element_size() for tensor in one.values()) < 5.1 * weights


@pytest.mark.parametrize(
    ("values", "reason"),
    [("model.lora={}", "all weights"), ("model.dtype=float32", "bfloat16 arithmetic")],
)
def test_what_it_does_not_go_with_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "r.yaml").write_text("model: {path: tiny}\ndata: {sources: [{path: rows.jsonl}]}\n")
    with pytest.raises(InputError, match=f"train.optimizer: got adamw_bf16; .*{reason}"):
        load_recipe("r.yaml", ["train.optimizer=adamw_bf16", values])


@pytest.mark.slow
def test_all_weights_of_the_7b_are_trained_on_80_gb(as_on_a_gpu: Any) -> None:
    """Traced, at 4 and 8 layers; what more layers need is linear. Two GB are left for what is outside torch's
    tensors."""

    def all_of(layers: int) -> float:
        config = copy.deepcopy(preset_config("7B"))
        config.num_hidden_layers, config.layer_types = layers, config.layer_types[:layers]
        how = {"tokens": 8192, "documents": 1, "micro_batches": 2, "labelled": 1.0, "optimizer": "adamw_bf16"}
        return trace(config, as_on_a_gpu=as_on_a_gpu, **how).all / 1e9

    four, eight = all_of(4), all_of(8)
    traced = four + 7 * (eight - four)
    assert traced == pytest.approx(72.0, rel=0.02), json.dumps([four, eight, traced])
