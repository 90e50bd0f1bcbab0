"""What a plan prints: the kinds in order, what waits, and what is not known said so."""

import dataclasses
import re
from typing import Any

import pytest
from plan_lines import part

from hybrid_ft.finetune.machines import memory
from hybrid_ft.finetune.planning import estimate
from hybrid_ft.finetune.planning.plan import Asked


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
