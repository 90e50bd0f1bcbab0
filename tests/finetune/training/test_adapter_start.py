"""Runs that start from an adapter: it goes on, or is merged first; the reference is the model as it starts."""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from run_helpers import LORA, plain_model, refused_keys
from safetensors.torch import load_file
from transformers import OlmoHybridForCausalLM

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.training.trainer import RunTrainer

ROW = torch.tensor([[5, 9, 33, 60, 12, 8, 7, 44, 21]])


@pytest.fixture(scope="module")
def trained(start_once: Any) -> Path:
    return start_once("first", model=LORA).folder / "adapter"


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    """Trained by a run, with rank 4 and alpha 8, and dropout."""
    return shutil.copytree(trained, tmp_path / "first/adapter")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ROW, use_cache=False).logits.double()


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def opened(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(OlmoHybridForCausalLM.from_pretrained(base), adapter)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "more",
    [{}, pytest.param({"merge_adapter": True}, marks=pytest.mark.slow), {"merge_adapter": True, "lora": LORA["lora"]}],
)
def test_a_run_starts_from_the_adapted_model(start: Any, adapter: Path, tiny_base: Path, more: Any) -> None:
    """A learning rate of next to nothing leaves it where it is; steps at the usual one move it."""
    wanted = logits(opened(tiny_base, adapter))
    still = start("still", model={"adapter": str(adapter), **more}, train={"steps": 1, "learning_rate": 1e-12})
    moved = start("moved", model={"adapter": str(adapter), **more})
    assert relative(wanted, logits(plain_model(tiny_base, torch.float32))) > 1e-2
    names = {path.name for path in still.folder.iterdir() if (path / "generation_config.json").is_file()}
    assert names == ({"adapter"} if not more else {"merged"} if "lora" in more else {"model"})
    for run, least, most in ((still, 0.0, 1e-5), (moved, 1e-3, math.inf)):
        folder = run.folder / names.copy().pop()
        got = logits(opened(tiny_base, folder) if not more else plain_model(folder, torch.float32))
        assert least <= relative(got, wanted) < most
    if not more:
        config = json.loads((moved.folder / "adapter" / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, str(tiny_base))
        assert f"{adapter}: " in moved.screen
    elif "lora" not in more:
        assert f"with {adapter} merged: " in moved.screen


@pytest.mark.slow
def test_a_third_run_goes_on_from_the_second(start: Any, adapter: Path, tiny_base: Path) -> None:
    second = start("second", model={"adapter": str(adapter)}).folder / "adapter"
    third = start("third", model={"adapter": str(second), "lora": {"merge": True}})
    folded = plain_model(third.folder / "merged", torch.float32)
    assert relative(logits(folded), logits(opened(tiny_base, third.folder / "adapter"))) < 1e-5
    assert relative(logits(folded), logits(opened(tiny_base, second))) > 1e-3


@pytest.mark.parametrize("more", [{}, pytest.param({"merge_adapter": True}, marks=pytest.mark.slow)])
def test_resumed_equals_uninterrupted(
    start: Any, adapter: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    model = {"adapter": str(adapter), **more}
    whole = start("whole", model=model)
    training_step = RunTrainer.training_step
    seen = []

    def stopped(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.state.global_step)
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(RunTrainer, "training_step", stopped)
        assert start("cut", model=model).status == 75
    resumed = start("cut", model=model)
    assert resumed.status == 0 and "going on from checkpoint-" in resumed.screen
    assert [line["loss"] for line in lines(resumed.folder)] == [line["loss"] for line in lines(whole.folder)]
    for path in whole.folder.glob("*/*model.safetensors"):
        assert path.read_bytes() == (resumed.folder / path.relative_to(whole.folder)).read_bytes(), path
    (adapter / "adapter_model.safetensors").write_bytes(
        (resumed.folder / "checkpoints/checkpoint-6/adapter_model.safetensors").read_bytes()
        if not more
        else b"another adapter"
    )
    with pytest.raises(InputError, match=r"model\.adapter was sha256:"):
        start("cut", model=model)


@pytest.mark.slow
def test_the_reference_of_pairs_is_the_model_as_it_starts(
    start: Any, start_pairs: Any, adapter: Path, tmp_path: Path
) -> None:
    """It is another than the base's: one cache for both is refused."""
    cache = {"reference_cache": str(tmp_path / "reference")}
    run = start_pairs("dpo", model={"adapter": str(adapter)}, dpo=cache)
    assert lines(run.folder)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    (pieces,) = (tmp_path / "reference").glob("*.safetensors")
    of_adapter = load_file(pieces)["chosen"]
    merged = start_pairs("merged", model={"adapter": str(adapter), "merge_adapter": True})
    (pieces,) = (merged.folder / "reference").glob("*.safetensors")
    assert torch.allclose(load_file(pieces)["chosen"], of_adapter, rtol=1e-4)
    fresh = start_pairs("fresh", model={"lora": {"rank": 4}})
    (pieces,) = (fresh.folder / "reference").glob("*.safetensors")
    assert not torch.allclose(load_file(pieces)["chosen"], of_adapter, rtol=1e-3)
    with pytest.raises(InputError, match="is the reference of another run: the base's weights differ"):
        start_pairs("again", model={"lora": {"rank": 4}}, dpo=cache)


def test_an_adapter_of_another_base_is_refused(start: Any, adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "other")
    with pytest.raises(
        InputError, match=r"adapter_config\.json says that its base is .*; an adapter goes on with the base"
    ):
        start("wrong", model={"path": str(tmp_path / "other"), "adapter": str(adapter)})
    assert not (tmp_path / "wrong").exists()
    path = adapter / "adapter_config.json"
    path.write_text(path.read_text().replace(str(tiny_base), "/where/it/was/trained"))
    assert start("moved", model={"path": str(tmp_path / "other"), "adapter": str(adapter)}).status == 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("merge_adapter: true", "model.merge_adapter: got true; needs model.adapter"),
        ("adapter: gone/adapter/there", "model.adapter: got 'gone/adapter/there'; there is no such adapter folder"),
        ("adapter: a, lora: {rank: 8}", "model.lora.rank: got 8; model.adapter goes on with its own"),
        ("adapter: a, from_scratch: true", "model.adapter: needs the base that it was trained on"),
        (
            "adapter: a, merge_adapter: true, lora: {rank: 8}",
            "model.lora.merge: must be true beside model.merge_adapter",
        ),
    ],
)
def test_keys_that_do_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    found = refused_keys(tmp_path, monkeypatch, model)
    assert any(message in line for line in found), found
    (tmp_path / "r.yaml").write_text("model: {path: tiny, adapter: a}\ndata: {sources: [{path: rows.jsonl}]}\n")
    right = load_recipe("r.yaml", [])
    assert right.model.lora is not None and right.train.learning_rate == 2e-4
    (tmp_path / "again.yaml").write_text(right.to_yaml())
    assert load_recipe("again.yaml", []) == right
