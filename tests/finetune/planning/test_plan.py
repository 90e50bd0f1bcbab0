"""``hybrid-ft plan``: its figures, kinds that fit, keys that would, the user's table."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.machines import memory
from hybrid_ft.finetune.planning import estimate, plan
from hybrid_ft.finetune.planning.estimate import changes
from hybrid_ft.finetune.planning.gpus import find, read_table
from hybrid_ft.finetune.planning.plan import Asked
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config


@pytest.fixture(scope="module")
def base_7b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 7B's config alone: a plan reads no weights."""
    folder = tmp_path_factory.mktemp("7b")
    preset_config("7B").save_pretrained(folder)
    return folder


@pytest.fixture
def planned(base_7b: Path) -> Any:
    """``planned(asked, model=..., train=...)``: the lines of the plan for the 7B on rows that are not here."""

    def go(asked: Asked | None = None, **sections: Any) -> list[str]:
        recipe = Recipe.model_validate(
            {
                "model": {"path": str(base_7b)} | sections.get("model", {}),
                "data": {"sources": [{"path": "owner/rows"}], "max_length": 4096} | sections.get("data", {}),
                "train": {"batch_tokens": 32768, "accumulation": 32} | sections.get("train", {}),
            }
            | ({"dpo": sections["dpo"]} if "dpo" in sections else {})
        )
        lines: list[str] = []
        assert plan.run(recipe, asked or Asked(), lines.append) == 0
        return lines

    return go


def part(lines: list[str], heading: str) -> str:
    """A heading's line and those under it."""
    start = next(n for n, text in enumerate(lines) if text.startswith(heading))
    more = next((n for n in range(start + 1, len(lines)) if not lines[n].startswith(" ")), len(lines))
    return "\n".join(lines[start:more])


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


def test_gpus_that_wait_are_said_and_counted(planned: Any) -> None:
    """Two micro-batches are one each for two of eight GPUs; the pairs of a step are dealt out one by one."""
    of_two = {"model": {"lora": {}}, "train": {"batch_tokens": 32768, "tokens_per_step": 65536}}
    two, eight = (planned(Asked(gpu="h100", gpus=gpus, tokens=10**9), **of_two) for gpus in (2, 8))
    assert "wait" not in part(two, "time")
    assert "6 of 8 GPUs wait at the end of each step, of 2 micro-batches; train.tokens_per_step" in part(eight, "time")
    hours = [re.findall(r"([\d,.]+) h", part(lines, "time")) for lines in (two, eight)]
    assert [float(n) for n in hours[1]] == pytest.approx([float(n) for n in hours[0]], rel=0.05)
    pairs = {"model": {"lora": {}}, "dpo": {"pairs_per_step": 16}}
    one, eight = (planned(Asked(gpu="h100", gpus=gpus, tokens=10**9), **pairs) for gpus in (1, 8))
    assert "wait" not in part(eight, "time")
    hours = [re.findall(r"([\d,.]+) h", part(lines, "time")) for lines in (one, eight)]
    assert float(hours[0][0]) / float(hours[1][0]) > 6
    odd = planned(Asked(gpu="h100", gpus=8, tokens=10**9), model={"lora": {}}, dpo={"pairs_per_step": 12})
    assert "4 of 8 GPUs wait at the end of each step, of 12 rows" in part(odd, "time")


def test_the_kinds_that_fit_are_in_order_of_cost(planned: Any) -> None:
    lines = planned(Asked(tokens=10**9), model={"lora": {}})
    found = re.findall(r"h, ([\d,.]+) to ([\d,.]+) \$", part(lines, "fits"))
    costs = [sum(float(n.replace(",", "")) for n in both) for both in found]
    assert len(costs) >= 4 and costs == sorted(costs)
    assert "L40S" in part(lines, "memory") and "RTX 4090" in part(lines, "not on")


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
    for lora in ({"dora": True}, {"init": "pissa"}):
        assert not any(nf4 in some for some in offered(1, lora))


def test_of_a_family_whose_layers_are_not_known_the_least_is_said(
    planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "peak", lambda *given: dataclasses.replace(memory.peak(*given), proven=False))
    lines = planned(Asked(), model={"lora": {}})
    assert re.search(r": may fit, at least [\d.]+ GB of", part(lines, "memory"))
    assert part(lines, "may fit").count("at least") == part(lines, "may fit").count("\n") + 1
    assert "needs at least" in part(lines, "not on")


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


def test_without_tokens_there_is_no_time(planned: Any) -> None:
    lines = planned()
    assert "owner/rows is not on this machine" in part(lines, "data") and "--tokens" in part(lines, "data")
    assert not [text for text in lines if text.startswith(("time", "cost"))]
    assert "89.2 GB each" in part(lines, "saves")
    steps = planned(train={"steps": 100})
    assert f"{100 * 32 * 32768:,} tokens" in part(steps, "data") and part(steps, "time")


def test_rows_that_are_here_are_read(tmp_path: Path, tiny_base: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]}
    rows.write_text((json.dumps(row) + "\n") * 5)
    recipe = Recipe.model_validate(
        {
            "model": {"path": str(tiny_base)},
            "data": {"sources": [{"path": str(rows)}], "max_length": 64},
            "train": {"batch_tokens": 64, "steps": 3},
        }
    )
    lines: list[str] = []
    plan.run(recipe, Asked(), lines.append)
    data = part(lines, "data")
    tokens = int(re.findall(r"5 rows, ([\d,]+) tokens", data)[0].replace(",", ""))
    assert 5 * 6 < tokens < 5 * 64 and "packs of at most" in data
    with pytest.raises(InputError, match="--tokens: the recipe's rows are on this machine"):
        plan.run(recipe, Asked(tokens=10**9), lines.append)


def test_pairs_have_two_answers_a_prompt(planned: Any) -> None:
    lines = planned(Asked(gpu="h100", gpus=1, tokens=10**8), model={"lora": {}}, dpo={"pairs_per_step": 32})
    assert part(lines, "memory") and part(lines, "time")


GOOD = {"name": "Mine", "memory": 100, "tflops": 500, "bandwidth": 2, "mfu": [0.2, 0.4], "link": 20}
OFFER = {"price": 1.0, "place": "here", "date": "2026-11-01"}


def test_a_users_table_replaces_and_adds(tmp_path: Path, planned: Any) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(json.dumps({"h100": GOOD | {"offers": [OFFER]}, "mine": GOOD | {"offers": [OFFER]}}))
    table = read_table(str(file))
    assert table["h100"].name == table["mine"].name == "Mine" and table["h200"].memory == 141e9
    assert "1.00 $ a GPU and hour (here, 2026-11-01)" in "\n".join(
        planned(Asked(gpu="mine", gpus=1, prices=str(file), tokens=10**6), model={"lora": {}})
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"mine": GOOD}, "mine: is a mapping"),
        ({"mine": GOOD | {"offers": []}}, "mine.offers: is an empty list"),
        ({"mine": GOOD | {"offers": [OFFER | {"price": -1}]}}, "price: is -1; must be a number above 0"),
        ({"mine": GOOD | {"offers": [OFFER | {"date": "May"}]}}, "date: is 'May'; must be a day"),
        ({"mine": GOOD | {"mfu": [0.5, 0.2], "offers": [OFFER]}}, "must rise and be at most 1"),
        ({"mine": GOOD | {"memory": "80GB", "offers": [OFFER]}}, "mine.memory: is '80GB'"),
    ],
)
def test_a_table_that_is_wrong_is_one_line(tmp_path: Path, rows: Any, said: str) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(json.dumps(rows))
    with pytest.raises(InputError) as refused:
        read_table(str(file))
    assert said in str(refused.value) and str(refused.value).startswith(f"{file}: ")
    assert "\n" not in str(refused.value)


def test_options_that_are_wrong(planned: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--gpu: 'h10' must be one of h100, .* did you mean h100\?"):
        find(read_table(), "h10")
    with pytest.raises(InputError, match="--price: goes with --gpu"):
        planned(Asked(price=3.0))
    with pytest.raises(InputError, match="--prices: .*none.yaml is not a file"):
        planned(Asked(prices=str(tmp_path / "none.yaml")))


def test_every_price_that_ships_is_dated_and_every_kind_has_room() -> None:
    for gpu in read_table().values():
        assert all(offer.date and offer.date >= "2026-08-01" for offer in gpu.offers)
        assert 20e9 < gpu.memory < 300e9 and 1e14 < gpu.flops < 3e15


@pytest.mark.parametrize("handed_on", [False, True])
def test_each_stage_of_a_file_is_planned(base_7b: Path, tmp_path: Path, handed_on: bool) -> None:
    """Later ones on the shape of the first one's base, with its adapter where that goes on."""
    model = {"path": str(base_7b), "lora": {"rank": 8}}
    data = {"sources": [{"path": "owner/rows"}], "max_length": 4096}
    sft, dpo = {"model": model, "data": data}, {"data": data, "train": {"batch_tokens": 8192}}
    if handed_on:
        dpo["model"] = {"adapter": "previous"}
    file = tmp_path / "all.yaml"
    file.write_text(json.dumps({"stages": [{"sft": sft}, {"dpo": dpo}], "output": str(tmp_path / "out")}))
    lines: list[str] = []
    assert plan.run_file(str(file), [], Asked(gpu="h100", gpus=1), lines.append) == 0
    assert [line for line in lines if line.startswith("stage ")] == ["stage 1 of 2  sft", "stage 2 of 2  dpo"]
    models = [line for line in lines if line.startswith("model ")]
    assert str(base_7b) in models[1] and len(models) == 2
    assert ("all trained" not in models[1]) == handed_on
    assert re.search(r"^price +3.99 \$ a GPU and hour \(", "\n".join(lines), re.MULTILINE)
    with pytest.raises(InputError, match="--tokens: .*all.yaml has several stages"):
        plan.run_file(str(file), [], Asked(tokens=10**6), lines.append)
