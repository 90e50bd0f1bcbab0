"""DPO on a stream: the losses and weights of a run whose reference is computed before, also after a stop."""

import json
from typing import Any

import pytest
import torch
from run_helpers import LORA_ALONE, losses, resumed_and_whole, timeless
from safetensors.torch import load_file
from stage_runs import streams_of_pairs

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.training.dpo.trainer import PairTrainer, StreamedPairTrainer
from hybrid_ft.finetune.training.reference_cache import ReferenceCache
from hybrid_ft.finetune.training.starting_values import StartingValues

KINDS = pytest.mark.parametrize("kind", ["full", "lora", pytest.param("adapter", marks=pytest.mark.slow)])


@pytest.fixture
def go(tmp_path: Any, tiny_base: Any) -> Any:
    """``go("run")``: as ``streams_of_pairs`` says."""
    from hybrid_ft.finetune.training.dpo.stage import DPO

    return streams_of_pairs(tmp_path, tiny_base, DPO)


@pytest.fixture
def model_of(go: Any) -> Any:
    """``model_of(kind)``: all weights, a fresh adapter, or one that goes on."""

    def of(kind: str) -> dict[str, Any]:
        if kind != "adapter":
            return LORA_ALONE if kind == "lora" else {}
        first = go("first", model=LORA_ALONE, train={"learning_rate": 1e-2})
        return LORA_ALONE | {"adapter": str(first.folder / "adapter")}

    return of


def account(folder: Any) -> Any:
    return json.loads((folder / "run.json").read_text())["data"]["account"]


@pytest.mark.parametrize(
    ("workers", "kind"),
    [
        (0, "full"),
        (1, "lora"),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in ((0, "lora"), (1, "full"), (0, "adapter"), (1, "adapter"))
        ),
    ],
)
def test_killed_and_stopped_it_ends_as_the_uninterrupted_run(
    go: Any, model_of: Any, monkeypatch: Any, workers: int, kind: str
) -> None:
    model = model_of(kind)
    resumed, whole = resumed_and_whole(
        monkeypatch, go, PairTrainer, model=model, train={"loader_workers": workers}, evaluate={"every": 3}
    )
    assert account(resumed) == account(whole)
    assert account(whole)["sources"][0]["rows_read"] == 25 and account(whole)["train"]["pairs_held_out"] == 2
    assert account(whole)["sources"][0]["dropped"]["not JSON"]["rows"] == 1
    # a pass ends with what is left of it
    assert [line["pairs"] for line in timeless(whole) if "pairs" in line] == [4, 4, 4, 4, 4, 2, 4, 4]


@KINDS
def test_it_is_the_run_whose_reference_is_computed_before(
    go: Any, model_of: Any, monkeypatch: Any, tmp_path: Any, kind: str
) -> None:
    """One pass, its pairs in the same order; what is counted is the same, and so are the held-out pairs."""
    model = model_of(kind)
    order: list[int] = []
    step = PairTrainer.training_step

    def taken(self: Any, of: Any, inputs: Any, *args: Any) -> Any:
        order.extend(int(origin.rpartition(":")[2]) for origin in inputs["rows"])
        return step(self, of, inputs, *args)

    with monkeypatch.context() as patched:
        patched.setattr(PairTrainer, "training_step", taken)
        streamed = go("streamed", model=model, train={"steps": 6}, evaluate={"every": 3})
    held = sorted(set(range(1, 26)) - {10} - set(order))
    assert len(order) == len(set(order)) == 22 and len(held) == 2

    lines = (tmp_path / "pairs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "held.jsonl").write_text("".join(lines[number - 1] for number in held))
    rest = [number for number in range(1, 26) if number not in held]
    (tmp_path / "pairs.jsonl").write_text("".join(lines[number - 1] for number in rest))
    rest.remove(10)
    monkeypatch.setattr(PairTrainer, "_get_train_sampler", lambda *_: [rest.index(number) for number in order])
    data = {"streaming": False, "eval": {"sources": [{"path": str(tmp_path / "held.jsonl")}]}}
    before = go("before", model=model, data=data, train={"steps": 6}, evaluate={"every": 3})
    assert losses(streamed.folder) == pytest.approx(losses(before.folder), abs=1e-6)
    for one, other in zip(timeless(streamed.folder), timeless(before.folder), strict=True):
        assert one == pytest.approx(other, abs=2e-5), one
    (saved,) = before.folder.glob("checkpoints/checkpoint-6/*model.safetensors")
    found = load_file(streamed.folder / saved.relative_to(before.folder))
    for name, tensor in load_file(saved).items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0)

    both = [account(run.folder) for run in (streamed, before)]
    assert both[0]["train"]["pairs"] == both[1]["train"]["pairs"] == 22
    assert both[0]["train"]["tokens"] == both[1]["train"]["tokens"]
    assert [one["sources"][0]["dropped"]["not JSON"]["rows"] for one in both] == [1, 1]


def test_nothing_is_kept_of_the_pairs_but_of_those_held_out(go: Any, monkeypatch: Any) -> None:
    """And no more of the weights than those trained, once: the base of an adapter is its own reference."""
    kept: list[StartingValues] = []
    trained: list[set[int]] = []
    keep = StreamedPairTrainer.keep_start

    def seen(self: Any) -> None:
        keep(self)
        kept.append(self.started)
        trained.append({id(parameter) for parameter in self.model.parameters() if parameter.requires_grad})

    monkeypatch.setattr(StreamedPairTrainer, "keep_start", seen)
    run = go("run", model=LORA_ALONE, train={"steps": 2})
    assert run.status == 0 and "of 9 shuffled pairs at a time" in run.screen
    assert "reference computed with each micro-batch" in run.screen
    assert "for weights and those at the start, gradients and moments" in run.screen
    cache = ReferenceCache(run.folder / "reference", {})
    assert len(cache._read(lambda text: None)) == 2
    (started,) = kept
    places = [id(parameter) for parameter, _ in started._both]
    assert set(places) == trained[0] and len(places) == len(trained[0])
    alone = go("alone", data={"eval": {}}, train={"steps": 2})
    assert alone.status == 0 and not (alone.folder / "reference").exists()


def test_a_loss_that_sorts_needs_room_for_the_longest_that_may_come(go: Any, tmp_path: Any) -> None:
    aot = {"loss": "aot", "beta": 0.1}
    with pytest.raises(InputError, match="those of a stream may, by data.max_length, have 768 tokens"):
        go("run", dpo=aot)
    assert not (tmp_path / "run").exists()
    assert go("run", dpo=aot, train={"steps": 2, "batch_tokens": 768}).status == 0
