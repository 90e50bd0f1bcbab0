"""What a plan prints: the kinds in order, what waits, and what is not known said so."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from plan_lines import part
from transformers import Qwen3_5Config, Qwen3_5TextConfig

from hybrid_ft.finetune.machines import memory
from hybrid_ft.finetune.planning import estimate, plan
from hybrid_ft.finetune.planning.plan import Asked
from hybrid_ft.finetune.recipe.schema import Recipe


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


def test_of_a_family_whose_layers_are_not_known_the_least_is_said(
    planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "peak", lambda *given: dataclasses.replace(memory.peak(*given), proven=False))
    lines = planned(Asked(), model={"lora": {}})
    assert re.search(r": may fit, at least [\d.]+ GB of", part(lines, "memory"))
    assert part(lines, "may fit").count("at least") == part(lines, "may fit").count("\n") + 1
    assert "needs at least" in part(lines, "not on")


@pytest.mark.parametrize("framed", [False, True], ids=["text", "multimodal"])
def test_qwen_fits_or_does_not(planned: Any, tmp_path: Path, framed: bool) -> None:
    """As Olmo Hybrid's 7B does, also where the base's files hold a vision tower beside the text model."""
    text = Qwen3_5TextConfig()
    (Qwen3_5Config(text_config=text.to_dict()) if framed else text).save_pretrained(tmp_path)
    model = {"path": str(tmp_path)}
    lines = planned(Asked(gpu="h100", gpus=1), model=model | {"lora": {}})
    assert re.search(r"1 x H100 SXM: fits, [\d.]+ GB of 80.0 GB, most in the backward", part(lines, "memory"))
    assert part(lines, "fits") and not any("at least" in line or "may fit" in line for line in lines)
    lines = planned(Asked(gpu="h100", gpus=1), model=model)
    assert re.search(r"1 x H100 SXM: does not fit, [\d.]+ GB of", part(lines, "memory"))
    assert "with model.lora={}" in part(lines, "change")


def test_a_reward_model_with_adapters_fits_or_does_not(base_7b: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "model": {"path": str(base_7b), "lora": {}},
            "data": {"sources": [{"path": "owner/rows"}], "max_length": 4096},
            "train": {"batch_tokens": 16384},
            "reward": {},
        }
    )
    lines: list[str] = []
    plan.run(recipe, Asked(gpu="h100", gpus=1), lines.append)
    assert ": fits, " in part(lines, "memory") and not any("at least" in line or "may fit" in line for line in lines)


def test_what_may_just_fit_is_known_to_the_end(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a figure is the least, and that is more than there is, nothing may fit."""
    tight = Asked(gpu="h200", gpus=1)
    assert "may just fit" in part(planned(tight), "memory")
    monkeypatch.setattr(estimate, "peak", lambda *given: dataclasses.replace(memory.peak(*given), proven=False))
    lines = planned(tight)
    assert "does not fit, at least" in part(lines, "memory") and not any(line.startswith("price") for line in lines)


def test_keys_are_offered_for_the_fewest_gpus_and_for_as_many_as_the_mildest_need(planned: Any) -> None:
    """Each with what that many need as the recipe is; and what is said to fit fits when it is asked for."""
    lines = planned(Asked(gpu="h100"))
    one, four = part(lines, "change").splitlines()
    assert re.match(r"change +1 x H100 SXM with train.optimizer=adamw_bf16 [\w.=]+ [\d.]+ GB$", one)
    assert re.match(r" +4 x H100 SXM with train.sharded=true [\d.]+ GB$", four)
    for count, fits in ((2, "does not fit"), (4, "fits")):
        found = planned(Asked(gpu="h100", gpus=count), train={"sharded": True})
        assert f"{count} x H100 SXM: {fits}, " in part(found, "memory")
    others = part(lines, "not on").splitlines()
    counted = [
        int(re.findall(r"(\d) x A100 SXM: needs [\d.]+ GB of 80.0 GB; with ", text)[0])
        for text in others
        if "A100" in text
    ]
    assert counted == [1, 4]
    assert "with train.sharded=true" in part(planned(Asked(gpu="h100", gpus=8)), "change")


def test_saves_are_counted(planned: Any) -> None:
    """At every so many steps and at the end, which may be one of these."""
    for steps, count in ((9, 2), (10, 2), (11, 3)):
        lines = planned(Asked(gpu="h100", gpus=1), model={"lora": {}}, train={"steps": steps, "save_every": 5})
        assert f"every 5 steps, {count} in all" in part(lines, "saves")
