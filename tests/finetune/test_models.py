"""Every forward of a run, whatever asks for it, takes place in the arithmetic of its training."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hybrid_ft.finetune.training import run as training

LORA = {"targets": "all-linear", "rank": 4, "alpha": 8}
WANTED = {"answers": 2, "samples": ["ab?"], "every": 3}


@contextmanager
def arithmetic_seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[torch.dtype, int]]:
    """How many linear layers gave an output of each dtype, until the result is exported: that is opened in its own."""
    seen: dict[torch.dtype, int] = {}

    def look(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Linear):
            seen[output.dtype] = seen.get(output.dtype, 0) + 1

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    export = training.ends.export

    def exported(*args: Any) -> list[Path]:
        handle.remove()
        return export(*args)

    monkeypatch.setattr(training.ends, "export", exported)
    try:
        yield seen
    finally:
        handle.remove()


# each two of stage, dtype and adapter meet in one of the fast four
FAST = {("sft", "bfloat16", False), ("sft", "float32", True), ("dpo", "bfloat16", True), ("dpo", "float32", False)}
EVERY = [
    (stage, dtype, lora) for stage in ("sft", "dpo") for dtype in ("bfloat16", "float32") for lora in (False, True)
]


@pytest.mark.parametrize(
    ("stage", "dtype", "lora"),
    [pytest.param(*one, marks=[] if one in FAST else pytest.mark.slow) for one in EVERY],
)
def test_every_forward_of_a_run(
    start: Any, start_pairs: Any, monkeypatch: pytest.MonkeyPatch, stage: str, dtype: str, lora: bool
) -> None:
    """Reference, first loss, longest pair, held-out loss, answers and samples before and after, and the steps."""
    model, evaluate = {"dtype": dtype, "lora": LORA if lora else None}, WANTED
    begin = start if stage == "sft" else start_pairs
    with arithmetic_seen(monkeypatch) as seen:
        run = begin(held_out=4, model=model, evaluate=evaluate)
    assert run.status == 0
    assert seen.keys() == {getattr(torch, dtype)} and seen[getattr(torch, dtype)] > 200
    result = run.folder / ("adapter/adapter_model.safetensors" if lora else "model/model.safetensors")
    kinds = {tensor.dtype for name, tensor in load_file(result).items() if name.endswith("proj.weight")}
    assert kinds == (set() if lora else {getattr(torch, dtype)})


def test_pairs_in_bfloat16_begin_at_their_reference(start_pairs: Any) -> None:
    """In float32 the loss of this base against a reference in bfloat16 is off by more than a run may begin with."""
    run = start_pairs(model={"dtype": "bfloat16"}, held_out=4)
    before = json.loads((run.folder / "run.json").read_text())["before"]["held_out"]
    assert before["loss"] == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize("lora", [pytest.param(None, marks=pytest.mark.slow), LORA], ids=["full", "lora"])
def test_bfloat16_resumes_to_the_bit(start: Any, monkeypatch: pytest.MonkeyPatch, lora: Any) -> None:
    from run_helpers import wrap_loss

    model = {"dtype": "bfloat16", "lora": lora}
    whole = start("whole", model=model, held_out=4, evaluate=WANTED)

    def end(trainer: Any, inputs: Any, loss: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step == 4:
            raise KeyboardInterrupt
        return loss

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        wrap_loss(patched, end)
        start("cut", model=model, held_out=4, evaluate=WANTED)
    resumed = start("cut", model=model, held_out=4, evaluate=WANTED)
    assert "going on from checkpoint-4" in resumed.screen
    assert resumed.metrics() == {step: loss for step, loss in whole.metrics().items()}
    for file in whole.folder.glob("*/*.safetensors"):
        assert file.read_bytes() == (resumed.folder / file.relative_to(whole.folder)).read_bytes(), file
