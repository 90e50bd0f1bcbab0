"""Of several processes number 0 reads the weights, and each of the others gets its pieces."""

import json
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_helpers import move, quickstart_recipe
from safetensors.torch import load_file
from torch.distributed.device_mesh import DeviceMesh

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs import weights
from hybrid_ft.finetune.runs.processes import Processes, whole
from hybrid_ft.finetune.runs.team import Team
from hybrid_ft.finetune.training.fsdp import divide
from hybrid_ft.finetune.training.reference_cache import ReferenceCache, digests_of, weights_digest
from hybrid_ft.finetune.training.trainer import RunTrainer
from hybrid_ft.hybrid_model.adapters import add_lora

CHILD = """
import gc, json, os, sys, warnings
import torch, torch.distributed as dist
from accelerate import Accelerator
from hybrid_ft.finetune import models
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.processes import whole
from hybrid_ft.finetune.training import fsdp
from hybrid_ft.hybrid_model.quantised import tables

def resident(which):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(which))

def named(model):
    return [*model.named_parameters(), *model.named_buffers()]

accelerator = Accelerator(cpu=True)
main = accelerator.is_main_process
recipes = [Recipe.model_validate(json.loads(one)) for one in sys.argv[1:]]
for recipe in recipes:
    tokenizer = models.load_tokenizer(recipe)
    gc.collect()
    before = resident("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
    model = models.load_model(recipe, tokenizer, weights=main)
    loaded = resident("VmHWM") - before
    kept = {n: p.detach().as_subclass(torch.Tensor).clone() for n, p in named(model)} if main else {}
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    fsdp.shard(model, accelerator, recipe, of_main=True)
    peak = resident("VmHWM") - before
    wrong = []
    for name, tensor in named(model):
        found = whole(tensor.detach())
        if main and not torch.equal(found, kept[name]):
            wrong.append(name)
    beside = [*model.buffers(), *tables(model)]
    buffers = [torch.cat([b.double().flatten() for b in beside] or [torch.zeros(1)])]
    both = [torch.empty_like(buffers[0]) for _ in range(2)]
    dist.all_gather(both, buffers[0].contiguous())
    wrong += [] if torch.equal(*both) else ["buffers"]
    print(json.dumps({"rank": dist.get_rank(), "size": size, "loaded": loaded, "peak": peak, "wrong": wrong}), flush=True)
dist.destroy_process_group()
"""


def children(*recipes: dict) -> list[list[dict]]:
    """What each of two processes says of each recipe."""
    shared = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared |= {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-c", CHILD, *map(json.dumps, recipes)]
    started = [
        subprocess.Popen(
            command, env=shared | {"RANK": str(n), "LOCAL_RANK": str(n)}, stdout=subprocess.PIPE, text=True
        )
        for n in range(2)
    ]
    said = [one.communicate(timeout=1200)[0] for one in started]
    assert [one.returncode for one in started] == [0, 0]
    return [[json.loads(line) for line in text.splitlines() if line.startswith("{")] for text in said]


def recipe(path: Path | str, **keys: dict) -> dict:
    rest = {"data": {"sources": [{"path": "rows.jsonl"}]}, "train": {"sharded": True}}
    return {"model": {"path": str(path)} | keys.pop("model", {})} | rest | keys


@pytest.mark.parametrize("lora", [None, {"rank": 4}, {"rank": 4, "dora": True, "token_rows": [3, 5]}], ids=str)
def test_a_checkpoint_goes_into_pieces(tiny_base: Path, tmp_path: Path, mesh: DeviceMesh, lora: Any) -> None:
    """As into a whole model; and one of another shape is refused."""
    saved, divided = (hybrid_ft.load(tiny_base, dtype=torch.float32) for _ in range(2))
    if lora:
        saved, divided = (add_lora(model, **lora) for model in (saved, divided))
    move(saved, 0.1)
    weights.save(saved, tmp_path / "saved")
    divide(divided, mesh, False)
    assert weights.is_divided(divided) and not weights.is_divided(saved)
    weights.load_into(divided, tmp_path / "saved")
    there = dict(divided.named_parameters())
    for name, parameter in saved.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(whole(there[name].detach()), parameter), name
    if lora:
        weights.save(add_lora(hybrid_ft.load(tiny_base), rank=2), tmp_path / "other")
        with pytest.raises(InputError, match="in this checkpoint"):
            weights.load_into(divided, tmp_path / "other")


def test_measuring_leaves_pieces(tiny_base: Path, mesh: DeviceMesh) -> None:
    """What an optimizer is made of, and a checkpoint, are pieces also after a forward without a backward."""
    model = hybrid_ft.load(tiny_base, dtype=torch.float32)
    divide(model, mesh, False)
    pieces = {name: id(parameter) for name, parameter in model.named_parameters()}
    trainer: Any = SimpleNamespace(model=model, arithmetic=nullcontext)
    with RunTrainer.measuring(trainer):
        model(input_ids=torch.tensor([[5, 9, 33]]))
        assert pieces != {name: id(parameter) for name, parameter in model.named_parameters()}
    assert pieces == {name: id(parameter) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("trained", [False, True])
def test_a_reference_is_known_by_its_pieces(tiny_base: Path, mesh: DeviceMesh, trained: bool) -> None:
    """The digest is the whole model's, so a run in pieces reads what one process has computed; adapters count
    once they are trained."""
    model = add_lora(hybrid_ft.load(tiny_base, dtype=torch.float32), rank=4)
    base = weights_digest(model)
    if trained:
        move(model, 0.1)
    found = weights_digest(model)
    assert weights_digest(model, wanted=False) == ""
    divide(model, mesh, False)
    assert weights_digest(model) == found and (found != base) == trained


def test_pieces_compute_a_reference_in_step(tmp_path: Path, make_pairs: Any) -> None:
    """A process with fewer micro-batches, or none, computes as many as the others, and knows before it begins."""
    pairs, told = make_pairs(3), []

    class Second(Processes):
        def of_main(self, value: Any) -> Any:
            return {}

        def gather(self, value: Any) -> list[Any]:
            told.append(value)
            return [2, value] if isinstance(value, int) else [{}, value]

    def compute(rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
        told.append("computed")
        return torch.zeros(len(rows)), torch.zeros(len(rows))

    cache = ReferenceCache(tmp_path, {})
    team = Team(count=2, number=1)
    cache.fill(pairs, digests_of(pairs), 10**6, compute, print, processes=Second(2, 1), team=team, in_step=True)
    assert told == [0, "computed", "computed", {}]


@pytest.mark.slow
def test_the_others_take_little_memory_and_get_the_same(tmp_path: Path) -> None:
    """The 190M: process 1 holds half of it, one tensor and its pieces while they are sent, never the whole."""
    hybrid_ft.load("190M", from_scratch=True).save_pretrained(tmp_path / "base")
    from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer

    load_tokenizer("tiny").save_pretrained(tmp_path / "base")
    main, other = (said[0] for said in children(recipe(tmp_path / "base")))
    assert main["wrong"] == other["wrong"] == []
    assert main["loaded"] > 0.9 * main["size"] > 6e8
    assert other["loaded"] < 0.1 * other["size"]
    assert other["peak"] < 0.8 * other["size"]


@pytest.mark.slow
def test_adapters_new_tokens_and_weights_in_bfloat16() -> None:
    lora = {"rank": 4, "targets": "all-linear"}
    wanted = [
        recipe("tiny", model={"lora": lora}),
        recipe("tiny", model={"lora": lora | {"dora": True}, "dtype": "bfloat16"}),
        recipe("tiny", model={"lora": lora | {"init": "pissa"}, "new_tokens": ["zzq"]}),
        recipe("tiny", model={"new_special_tokens": ["<|zzq|>"]}),
        recipe("tiny", train={"sharded": True, "optimizer": "adamw_bf16"}),
        recipe("tiny", model={"from_scratch": True}),
        recipe("tiny", model={"lora": lora}, reward={}),
    ]
    for of_each in zip(*children(*wanted), wanted, strict=True):
        assert of_each[0]["wrong"] == of_each[1]["wrong"] == [], of_each[2]


@pytest.mark.slow
def test_what_unpacks_a_quantised_base() -> None:
    pytest.importorskip("bitsandbytes")
    lora = {"rank": 4, "targets": "all-linear"}
    more = {"nf4": {"new_tokens": ["zzq"], "lora": lora}, "int8": {"lora": lora | {"targets": "attention"}}}
    wanted = [recipe("tiny", model={"quantize": how} | keys) for how, keys in more.items()]
    for of_each in zip(*children(*wanted), wanted, strict=True):
        assert of_each[0]["wrong"] == of_each[1]["wrong"] == [], of_each[2]


@pytest.mark.slow
def test_a_run_that_goes_on_sends_the_checkpoints(tmp_path: Path, root: Path) -> None:
    """Stopped after two steps and gone on with: the bits of the run that was not."""
    quickstart_recipe(
        tmp_path,
        root,
        120,
        "path: tiny, lora: {rank: 4, dropout: 0}",
        "tokens_per_step: 1536, schedule: constant, warmup: 0, sharded: true",
    )
    for output, *more in (("whole",), ("cut", "train.steps=2"), ("cut", "--extend")):
        command = [
            sys.executable,
            "-m",
            "hybrid_ft.cli",
            "launch",
            "r.yaml",
            "--processes=2",
            f"output={output}",
            *more,
        ]
        done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
    for file in ("adapter_model.safetensors", "optimizer-00001.safetensors"):
        one, two = (load_file(tmp_path / of / "checkpoints/checkpoint-4" / file) for of in ("whole", "cut"))
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
