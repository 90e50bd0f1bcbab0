"""What a plan prints: the kinds in order, and what is not known said so."""

import dataclasses
import re
from typing import Any

import pytest
from plan_lines import part

from hybrid_ft.finetune.machines import memory
from hybrid_ft.finetune.planning import estimate
from hybrid_ft.finetune.planning.plan import Asked


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
