"""LoRA on a base in 4 or 8 bits: what stays whole, what is trained, merged and resumed."""

import importlib.util
from typing import Any

import pytest
import torch
from peft import PeftModel
from run_helpers import move, plain_model
from safetensors.torch import load_file

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.runs.processes import whole
from hybrid_ft.finetune.training.fsdp import divide
from hybrid_ft.finetune.training.trainer import RunTrainer
from hybrid_ft.hybrid_model.adapters import add_lora
from hybrid_ft.hybrid_model.quantised import known_to_peft, quantise

ADAPTERS = {"targets": "all-linear", "rank": 4, "alpha": 8, "merge": True}
LAYERS = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}


def model_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a run's trainer is given, with each step's loss."""
    seen: dict[str, Any] = {}
    step = RunTrainer.training_step

    def watched(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        seen["model"] = model
        return step(self, model, *args, **kwargs)

    monkeypatch.setattr(RunTrainer, "training_step", watched)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("how", LAYERS)
def test_adapters_are_trained_on_a_quantised_base(start, monkeypatch, tiny_base, how):
    pytest.importorskip("bitsandbytes")
    seen = model_of(monkeypatch)
    run = start("one", model={"quantize": how, "lora": ADAPTERS}, train={"steps": 4, "warmup": 0.0})
    assert run.status == 0
    base = seen["model"].get_base_model()
    kinds = {name: type(getattr(module, "base_layer", module)).__name__ for name, module in base.named_modules()}
    packed = {name for name, kind in kinds.items() if kind == LAYERS[how]}
    adapted = {name.removesuffix(".base_layer") for name in kinds if name.endswith(".base_layer")}
    assert {name for name in packed if not name.endswith(".base_layer")} == adapted != set()
    assert not any(name.endswith(("a_proj", "b_proj", "lm_head", "conv1d", "norm")) for name in packed)
    # the adapters are float32 and all of them moved
    tensors = load_file(run.folder / "adapter/adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(tensor.abs().sum() > 0 for tensor in tensors.values())
    # the base was rounded in training: the first loss is not that of the whole base
    whole = start("whole", model={"lora": ADAPTERS}, train={"steps": 4, "warmup": 0.0})
    rounded, exact = (one.metrics()[1] for one in (run, whole))
    assert 0 < abs(rounded - exact) < 0.3 * exact
    # what is merged is the base as it was, with the adapter
    row = torch.tensor([[5, 9, 33, 60, 12, 8, 7, 44, 21]])
    adapted_base = PeftModel.from_pretrained(plain_model(tiny_base), run.folder / "adapter").double()
    with torch.no_grad():
        got, want = (
            model.eval()(row, use_cache=False).logits for model in (plain_model(run.folder / "merged"), adapted_base)
        )
    assert float((got - want).norm() / want.norm()) < 1e-5


@pytest.mark.parametrize("how", LAYERS)
def test_pieces_compute_what_the_whole_does(tiny_base, mesh, how):
    """FSDP2's gathered weight is a plain parameter, without what unpacks it; bit for bit, with checkpointing
    and after a step."""
    pytest.importorskip("bitsandbytes")
    row = torch.tensor([[5, 9, 33, 60, 12, 8, 7, 44, 21]])
    found = []
    for divided in (False, True):
        model = hybrid_ft.load(tiny_base, dtype=torch.float32)
        quantise(model, how, torch.float32)
        torch.manual_seed(0)
        with known_to_peft(model, how):
            model = add_lora(model, rank=4)
        move(model, 0.1)
        if divided:
            divide(model, mesh, False)
        plain = model.get_base_model()
        plain.gradient_checkpointing_enable({"use_reentrant": False})
        plain.enable_input_require_grads()
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        losses = []
        for _ in range(2):
            loss = model(input_ids=row, labels=row, use_cache=False).loss
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        gradients = {n: whole(p.grad) for n, p in model.named_parameters() if p.requires_grad}
        found.append((losses, gradients))
    (losses, gradients), (in_pieces, of_pieces) = found
    assert losses == in_pieces and losses[0] != losses[1]
    assert gradients.keys() == of_pieces.keys()
    assert all(torch.equal(gradient, of_pieces[name]) for name, gradient in gradients.items())


@pytest.mark.slow
def test_pairs_are_compared_with_the_quantised_base(start_pairs):
    """The run stops itself where its first loss is not that of equal models."""
    pytest.importorskip("bitsandbytes")
    run = start_pairs("pairs", model={"quantize": "nf4", "lora": {**ADAPTERS, "merge": False}}, train={"steps": 2})
    assert run.status == 0 and (run.folder / "adapter").is_dir()


@pytest.mark.slow
def test_a_stopped_run_ends_where_it_would_have(start, monkeypatch):
    pytest.importorskip("bitsandbytes")
    model = {"quantize": "nf4", "lora": {**ADAPTERS, "dropout": 0.1}}
    through = start("through", model=model, train={"steps": 6, "save_every": 2})
    step = RunTrainer.training_step
    taken = []

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        taken.append(1)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(RunTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        start("cut", model=model, train={"steps": 6, "save_every": 2})
    monkeypatch.setattr(RunTrainer, "training_step", step)
    again = start("cut", model=model, train={"steps": 6, "save_every": 2})
    name = "adapter/adapter_model.safetensors"
    assert (again.folder / name).read_bytes() == (through.folder / name).read_bytes()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"quantize": "nf4"}, "model.quantize: got nf4; needs model.lora"),
        ({"quantize": "nf4", "lora": {"dora": True}}, "model.lora.dora: got true"),
        ({"quantize": "int8", "lora": {"init": "pissa"}}, "model.lora.init: got pissa"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, model, message):
    import yaml

    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    recipe = {"model": {"path": "tiny", **model}, "data": {"sources": [{"path": str(tmp_path / "rows.jsonl")}]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        load_recipe(str(tmp_path / "recipe.yaml"), [])


def test_a_package_that_is_missing_is_named(start, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: name != "bitsandbytes" and find(name, *more) or None
    )
    with pytest.raises(InputError, match="model.quantize: bitsandbytes is not installed; pip install"):
        start("one", model={"quantize": "nf4", "lora": ADAPTERS})
