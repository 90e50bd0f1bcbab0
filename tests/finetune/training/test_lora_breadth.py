"""Runs with the recipe's other kinds of LoRA: what they train, how fast, and that they resume to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from run_helpers import plain_model, refused_keys, stopping
from safetensors.torch import load_file
from transformers import OlmoHybridForCausalLM
from transformers.integrations import neftune

from hybrid_ft.finetune.training.trainer import RunTrainer

ROW = torch.tensor([[5, 9, 33, 60, 12, 8, 7, 44, 21]])
BASE = {"rank": 4, "alpha": 8, "merge": True}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ROW, use_cache=False).logits.double()


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pissa": ({"init": "pissa"}, {}),
    "own modules": ({"modules": ["self_attn.q_proj", "mlp.*"], "modules_to_save": ["model.norm", "embed_tokens"]}, {}),
    "LoRA+ and NEFTune": ({"dora": True}, {"loraplus_ratio": 8, "neftune_alpha": 5}),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "LoRA+ and NEFTune" else pytest.mark.slow) for kind in KINDS]
)
def test_a_run_opens_in_plain_peft_and_resumes_to_the_bit(
    start: Any, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    lora, train = KINDS[kind]
    model = {"lora": BASE | lora}
    whole = start("whole", model=model, train=train)
    opened = PeftModel.from_pretrained(OlmoHybridForCausalLM.from_pretrained(tiny_base), whole.folder / "adapter")
    folded = logits(plain_model(whole.folder / "merged", torch.float32))
    assert relative(logits(opened), folded) < 1e-5
    assert relative(folded, logits(plain_model(tiny_base, torch.float32))) > 1e-2

    with stopping(monkeypatch, after=4):
        assert start("cut", model=model, train=train).status == 75
    resumed = start("cut", model=model, train=train)
    assert "going on from checkpoint-" in resumed.screen
    assert resumed.metrics() == whole.metrics()
    for file in (*whole.folder.glob("*/*.safetensors"), *whole.folder.glob("checkpoints/checkpoint-6/*.safetensors")):
        assert file.read_bytes() == (resumed.folder / file.relative_to(whole.folder)).read_bytes(), file


def test_b_learns_faster_than_a_by_the_ratio(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    create, made = RunTrainer.create_optimizer, []

    def seen(self: RunTrainer, *args: Any) -> torch.optim.Optimizer:
        made.append((self.model, create(self, *args)))
        return made[-1][1]

    monkeypatch.setattr(RunTrainer, "create_optimizer", seen)
    start(
        model={"lora": {"rank": 4, "dora": True}}, train={"loraplus_ratio": 8, "weight_decay": 0.1, "betas": [0.8, 0.9]}
    )
    model, optimizer = made[0]
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            fast, group = "lora_B" in name or "magnitude" in name, groups[id(parameter)]
            assert group["initial_lr"] == pytest.approx(1e-2 * (8 if fast else 1)), name
            assert group["weight_decay"] == (0 if "magnitude" in name else 0.1), name
            assert group["betas"] == (0.8, 0.9)


def test_neftune_s_noise_is_the_recipe_s_in_training_alone(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the length of each document; held-out losses before and after are without it."""
    noise, shapes = neftune.neftune_post_forward_hook, []

    def seen(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if module.training:
            shapes.append(output.shape[1])
            assert module.neftune_noise_alpha == 5
        return noise(module, inputs, output)

    monkeypatch.setattr(neftune, "neftune_post_forward_hook", seen)
    train = {"steps": 2, "learning_rate": 1e-12}
    noisy = start("noisy", held_out=3, train=train | {"neftune_alpha": 5})
    clean = start("clean", held_out=3, train=train)
    assert shapes and set(shapes) <= set(map(len, noisy.prepared.train["input_ids"]))
    assert noisy.metrics()[1] != clean.metrics()[1]
    before = [json.loads((run.folder / "run.json").read_text())["before"] for run in (noisy, clean)]
    assert before[0] == before[1]


@pytest.mark.slow
def test_pairs_train_an_adapter_that_began_with_the_base_s_own_factors(start_pairs: Any, tiny_base: Path) -> None:
    """TRL gives a reference adapter to every model with one, which would take its part out of the base once more."""
    lora = {"rank": 4, "init": "pissa", "modules_to_save": ["model.norm"], "merge": True}
    run = start_pairs(model={"lora": lora}, train={"loraplus_ratio": 4})
    assert run.status == 0
    first = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)
    opened = PeftModel.from_pretrained(OlmoHybridForCausalLM.from_pretrained(tiny_base), run.folder / "adapter")
    folded = logits(plain_model(run.folder / "merged", torch.float32))
    assert relative(logits(opened), folded) < 1e-5
    assert "base_model.model.model.norm.weight" in load_file(run.folder / "adapter" / "adapter_model.safetensors")


def test_bfloat16_keeps_what_is_trained_whole_in_float32(start: Any) -> None:
    run = start(
        model={"dtype": "bfloat16", "lora": BASE | {"init": "olora", "modules_to_save": ["lm_head|model.norm"]}}
    )
    assert run.status == 0
    saved = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert {tensor.dtype for tensor in load_file(run.folder / "merged" / "model.safetensors").values()} == {
        torch.bfloat16
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora: {modules: [q_proj], targets: mlp}", "model.lora.modules: got a list of 1 beside targets mlp"),
        ("lora: {modules: ['(q']}", "model.lora.modules.0: got '(q'; must be a name or a regular expression"),
        ("lora: {init: orthogonal, rank: 5}", "model.lora.init: got orthogonal with rank 5"),
        (
            "lora: {targets: experts, dropout: 0.1}",
            "model.lora.dropout: got 0.1; PEFT adapts the experts of all layers",
        ),
        (
            "lora: {targets: mlp+experts, dora: true}",
            "model.lora.dora: got true; PEFT adapts the experts of all layers",
        ),
        (
            "lora: {targets: experts, init: olora}",
            "model.lora.init: got 'olora'; PEFT adapts the experts of all layers",
        ),
        ("lora: {targets: experts, layers: [0]}", "model.lora.layers: got a list of 1; PEFT adapts the experts of all"),
        (
            "adapter: a, lora: {modules_to_save: [lm_head]}",
            "model.lora.modules_to_save: got a list of 1; model.adapter goes",
        ),
        ("lora: null}\ntrain: {loraplus_ratio: 4", "train.loraplus_ratio: got 4; it is LoRA's, set model.lora: {}"),
        ("lora: {}}\ndpo: {}\ntrain: {neftune_alpha: 4", "train.neftune_alpha: got 4; must be null for pairs"),
    ],
)
def test_keys_that_do_not_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    found = refused_keys(tmp_path, monkeypatch, text)
    assert any(message in line for line in found), found
