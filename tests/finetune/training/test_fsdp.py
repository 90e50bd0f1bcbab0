"""A model in pieces (FSDP2) gives the losses and gradients of a whole one, to the bit, and gathers half the bytes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_trace import trace
from run_helpers import losses, quickstart_recipe
from safetensors.torch import load_file
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from hybrid_ft.finetune.models import freeze_routers
from hybrid_ft.finetune.training.adamw_bf16 import AdamWBF16
from hybrid_ft.finetune.training.fsdp import divide
from hybrid_ft.finetune.training.seams import use_fused_head
from hybrid_ft.hybrid_model.adapters import add_lora
from hybrid_ft.hybrid_model.families.known import FAMILIES, family_of_type
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config
from hybrid_ft.hybrid_model.lay_flat import lay_flat

FAST = ("olmo_hybrid", "qwen3_5_moe_text", "zamba2")  # an untied head; experts; a block that layers share
KINDS = [
    kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for family in FAMILIES for kind in family.tiny
]


def tiny(kind: str, dtype: torch.dtype = torch.float32, checkpointing: bool = False, lora: bool = False) -> Any:
    tokens = {"vocab_size": 128, "pad_token_id": 1, "bos_token_id": None, "eos_token_id": 0}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **tokens | dict(family_of_type(kind).tiny[kind]))
    model: Any = lay_flat(AutoModelForCausalLM.from_config(config)).to(dtype)
    if dtype == torch.bfloat16:
        for name, parameter in model.named_parameters():
            if name.endswith(family_of_type(kind).float32):
                parameter.data = parameter.data.float()
    freeze_routers(model)
    use_fused_head(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return (add_lora(model, rank=4) if lora else model).train()


def two_micro_batches(model: Any, bfloat16: bool = True) -> list[float]:
    ids, losses = torch.arange(3, 43)[None] % 128, []
    for n in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16, cache_enabled=False):
            loss = model(input_ids=ids + n, labels=ids + n, fused_lm_head=True).loss
        loss.backward()
        losses.append(float(loss.detach()))
    return losses


def whole(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same(model: Any, divided: Any, mesh: DeviceMesh, bfloat16: bool = True) -> None:
    divide(divided, mesh, bfloat16)
    assert two_micro_batches(model, bfloat16) == two_micro_batches(divided, bfloat16)
    ours, theirs = dict(model.named_parameters()), dict(divided.named_parameters())
    assert ours.keys() == theirs.keys() and all(isinstance(p, DTensor) for p in theirs.values())
    for name, parameter in ours.items():
        found = whole(theirs[name].grad)
        assert (parameter.grad is None) == (found is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, found), name
        assert found is None or found.dtype == parameter.dtype


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_the_whole(mesh: DeviceMesh, kind: str, checkpointing: bool) -> None:
    """Gathered in bfloat16 as autocast would cast it; norms, decay rates and head in float32."""
    assert_same(tiny(kind, checkpointing=checkpointing), tiny(kind, checkpointing=checkpointing), mesh)


@pytest.mark.parametrize("how", [{"bfloat16": False}, {"lora": True}, {"dtype": torch.bfloat16}], ids=str)
def test_in_other_dtypes_too(mesh: DeviceMesh, how: dict[str, Any]) -> None:
    """float32 arithmetic, adapters on a base, weights that are kept in bfloat16 beside float32 decay rates."""
    arithmetic = how.pop("bfloat16", True)
    kind = "olmo_hybrid"
    assert_same(tiny(kind, **how), tiny(kind, **how), mesh, arithmetic)


def test_pieces_of_bfloat16_weights_take_a_step(mesh: DeviceMesh) -> None:
    """Each draws random bits of its own: apart from the whole one's by a rounding, weights and both moments."""
    model, divided = (tiny("olmo_hybrid", torch.bfloat16) for _ in range(2))
    assert_same(model, divided, mesh)
    made = [AdamWBF16(one.parameters(), lr=1e-3, seed=3) for one in (model, divided)]
    for optimizer in made:
        optimizer.step()
    for one, other in zip(model.parameters(), divided.parameters(), strict=True):
        state = made[1].state[other]
        assert whole(state["exp_avg"]).shape == one.shape and state["exp_avg"].dtype == one.dtype
        assert ("low" in state) == (one.dtype == torch.bfloat16)
        assert torch.allclose(whole(other).float(), one.float(), rtol=2**-7, atol=1e-5)
        assert torch.allclose(whole(state["exp_avg"]).float(), made[0].state[one]["exp_avg"].float(), rtol=2**-6)


@pytest.mark.slow
def test_half_the_bytes_are_gathered(as_on_a_gpu: Any) -> None:
    """Of the 7B's layers, once in forward and once in backward; the rest, and the embedding, once."""

    def gathered(layers: int) -> int:
        config = preset_config("7B")
        config.num_hidden_layers, config.layer_types = layers, config.layer_types[:layers]
        return trace(config, tokens=64, documents=1, processes=8, as_on_a_gpu=as_on_a_gpu).gathered

    four, eight = gathered(4), gathered(8)
    numbers = 832_663_680  # of four layers
    assert 2 * 2 * 0.999 * numbers < eight - four < 2 * 2 * 1.001 * numbers
    head = 100_352 * 3_840
    assert four - (eight - four) == pytest.approx(4 * 2 * head, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("keys", ["model.dtype=bfloat16", "train.optimizer=adamw_bf16"])
def test_two_processes_take_the_steps_of_one(tmp_path: Path, root: Path, keys: str) -> None:
    """And go on from a checkpoint, whose files are those of one process, to the same bits."""
    quickstart_recipe(tmp_path, root, 160, "path: tiny", "tokens_per_step: 3072, schedule: constant, warmup: 0")

    def run(output: str, processes: int, *more: str) -> None:
        command = [sys.executable, "-m", "hybrid_ft.cli", "launch", "r.yaml", f"--processes={processes}"]
        command += [f"output={output}", keys, f"train.sharded={str(processes > 1).lower()}", *more]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, check=False, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Warning" not in done.stdout + done.stderr

    run("one", 1)
    run("two", 2)
    run("cut", 2, "train.steps=2")
    run("cut", 2, "--extend")

    assert len(losses(tmp_path / "one")) == 4 and losses(tmp_path / "two") == pytest.approx(
        losses(tmp_path / "one"), rel=2e-3
    )
    last = "checkpoints/checkpoint-4"
    for file in ("model.safetensors", "optimizer-00001.safetensors"):
        one, two, cut = (load_file(tmp_path / output / last / file) for output in ("one", "two", "cut"))
        assert {n: (x.shape, x.dtype) for n, x in one.items()} == {n: (x.shape, x.dtype) for n, x in two.items()}
        assert all(torch.equal(two[name], cut[name]) for name in two)
    assert sorted(p.name for p in (tmp_path / "one" / last).iterdir()) == sorted(
        p.name for p in (tmp_path / "two" / last).iterdir()
    )
