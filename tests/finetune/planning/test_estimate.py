"""Whether a recipe fits, what makes it fit, and what it takes."""

import re
from typing import Any

import pytest
from plan_lines import part

from hybrid_ft.finetune.planning.estimate import changes
from hybrid_ft.finetune.planning.plan import Asked
from hybrid_ft.finetune.recipe.schema import Recipe


def test_what_is_held_is_sixteen_bytes_a_weight(planned: Any) -> None:
    memory = part(planned(Asked(gpu="b300", gpus=1, tokens=10**9)), "memory")
    assert "1 x B300: fits" in memory and "most in the backward of layer 30 (delta rule)" in memory
    terms = dict(re.findall(r"^ +([a-zA-Z' ]+?)  +([\d.]+) GB", memory, re.MULTILINE))
    parameters = 7_430_870_688
    assert float(terms["weights"]) == float(terms["gradients"]) == round(4 * parameters / 1e9, 1)
    assert float(terms["moments"]) == round(8 * parameters / 1e9, 1)


def test_speed_is_the_published_one(planned: Any) -> None:
    """Ai2's 9,073 tokens/s on an H100, rows of 4,096, lie in the range of eight of them; adapters are faster."""
    full = part(planned(Asked(gpu="h100", gpus=8, tokens=10**9), train={"sharded": True}), "time")
    low, high = (int(n.replace(",", "")) / 8 for n in re.findall(r"([\d,]+) to ([\d,]+) tokens/s", full)[0])
    assert 5_000 < low < 9_073 < high < 10_700
    lora = part(planned(Asked(gpu="h100", gpus=1, tokens=10**9), model={"lora": {}}), "time")
    low, high = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) to ([\d,]+) tokens/s", lora)[0])
    assert low == pytest.approx(7_650, rel=0.05) and high == pytest.approx(13_800, rel=0.05)


def test_money_is_hours_times_price(planned: Any) -> None:
    lines = planned(Asked(gpu="a100", gpus=2, tokens=10**9, price=2.0), model={"lora": {}})
    hours = [float(n.replace(",", "")) for n in re.findall(r"([\d,.]+) h", part(lines, "time"))]
    dollars = [float(n.replace(",", "")) for n in re.findall(r"^cost +([\d,.]+) to ([\d,.]+)", part(lines, "cost"))[0]]
    assert dollars == pytest.approx([2 * 2.0 * one for one in hours], rel=0.03)


def test_a_key_that_makes_it_fit_does(planned: Any) -> None:
    """What is said to fit fits when it is asked for."""
    asked = Asked(gpu="h100", gpus=8)
    change = part(planned(asked), "change")
    assert change.startswith("change    with train.sharded=true ")
    needed = change.split()[-2]
    assert f"8 x H100 SXM: fits, {needed} GB of" in part(planned(asked, train={"sharded": True}), "memory")
    asked = Asked(gpu="rtx-4090", gpus=1)
    found = re.findall(r"train.batch_tokens=(\d+)", part(planned(asked, model={"lora": {}}), "change"))
    assert len(found) == 1
    smaller = planned(asked, model={"lora": {}}, train={"batch_tokens": int(found[0])}, data={"max_length": 1024})
    assert "1 x RTX 4090: fits" in part(smaller, "memory")


SMALL, DIVIDED = ("train", "optimizer", "adamw_bf16"), ("train", "sharded", True)


HOST = ("model", "gradient_checkpointing", "offload")


def offered(count: int, lora: Any = None, **train: Any) -> list[tuple[tuple[str, str, Any], ...]]:
    data = {"sources": [{"path": "owner/rows"}], "max_length": 4096}
    train = {"batch_tokens": 32768} | train
    recipe = Recipe.model_validate({"model": {"path": "owner/base", "lora": lora}, "data": data, "train": train})
    return list(changes(recipe, count))


def test_rows_are_cut_only_after_the_base_is_rounded() -> None:
    """Under adapters; and no base is rounded whose exact weights they need."""
    nf4 = ("model", "quantize", "nf4")
    keys = [[key for _, key, _ in some] for some in offered(1, {})]
    cut = [n for n, some in enumerate(keys) if "max_length" in some]
    assert keys.index(["batch_tokens"]) < keys.index(["quantize"]) < min(cut)
    assert ["quantize", "gradient_checkpointing"] in keys[: min(cut)]
    adapted = [some for some in offered(1) if ("model", "lora", {}) in some]  # where it has none yet
    cut = [n for n, some in enumerate(adapted) if any(key == "max_length" for _, key, _ in some)]
    assert adapted.index((("model", "lora", {}), nf4, HOST)) < min(cut)
    for lora in ({"dora": True}, {"init": "pissa"}):
        assert not any(nf4 in some for some in offered(1, lora))


def test_bits_of_the_weights_go_last() -> None:
    """On one GPU before the host's memory is used; over several only where what rounds nothing is not enough."""
    assert offered(1)[:2] == [(SMALL,), (SMALL, HOST)] == offered(1, optimizer="muon")[:2]
    assert offered(2)[:4] == [(DIVIDED,), (DIVIDED, HOST), (DIVIDED, SMALL), (DIVIDED, SMALL, HOST)]
    assert offered(2, sharded="machine")[:2] == [(HOST,), (SMALL,)]
    assert not any(SMALL in some for some in offered(2, optimizer="adamw_bf16"))


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_bf16", "muon"])
def test_what_is_offered_is_a_recipe(optimizer: str) -> None:
    """Adapters come with the one optimizer that they have."""
    found = offered(2, optimizer=optimizer)
    adapted = [{key: value for _, key, value in some} for some in found if ("model", "lora", {}) in some]
    assert adapted and all(one.get("optimizer", optimizer) == "adamw" for one in adapted)


def test_a_machines_gpus_hold_a_whole_model(planned: Any) -> None:
    """16 GPUs are two machines: each holds what one of 8 does, and over the slow link goes less than without copies."""
    found = {}
    for how, gpus in ((True, 16), ("machine", 16), ("machine", 8), (True, 8)):
        lines = planned(Asked(gpu="b300", gpus=gpus, tokens=10**9), train={"sharded": how})
        weights = float(re.findall(r"weights +([\d.]+) GB", part(lines, "memory"))[0])
        longest = float(re.findall(r"to ([\d.]+) (?:h|min)", part(lines, "time"))[0])
        found[how, gpus] = weights, longest
    assert found["machine", 16][0] == found["machine", 8][0] == found[True, 8][0] == pytest.approx(29.7 / 8, abs=0.06)
    assert found[True, 16][0] == pytest.approx(29.7 / 16, abs=0.06)
    assert found["machine", 16][1] < found[True, 16][1]
    assert found["machine", 8] == found[True, 8]
