"""``hybrid-ft plan``: its figures, kinds that fit, keys that would, the user's table."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from plan_lines import part

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.machines.gpus import find, read_table
from hybrid_ft.finetune.planning import plan
from hybrid_ft.finetune.planning.plan import Asked


def test_options_that_are_wrong(planned: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--gpu: 'h10' must be one of h100, .* did you mean h100\?"):
        find(read_table(), "h10")
    with pytest.raises(InputError, match="--price: goes with --gpu"):
        planned(Asked(price=3.0))
    with pytest.raises(InputError, match="--prices: .*none.yaml is not a file"):
        planned(Asked(prices=str(tmp_path / "none.yaml")))


def test_a_users_table_is_planned_with(planned: Any, tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    mine = {"name": "Mine", "memory": 100, "tflops": 500, "bandwidth": 2, "mfu": [0.2, 0.4], "link": 20}
    file.write_text(json.dumps({"mine": mine | {"offers": [{"price": 1.0, "place": "here", "date": "2026-11-01"}]}}))
    lines = planned(Asked(gpu="mine", gpus=1, prices=str(file), tokens=10**6), model={"lora": {}})
    assert "1.00 $ a GPU and hour (here, 2026-11-01)" in "\n".join(lines)


def test_a_run_ends_with_its_steps_also_where_tokens_are_said(planned: Any) -> None:
    """Of an epoch of a million such tokens, and of one of as many as the steps take."""
    of = {"model": {"lora": {}}, "train": {"batch_tokens": 32768, "tokens_per_step": 65536, "steps": 100}}
    lines = [part(planned(Asked(gpu="h100", gpus=1, tokens=n), **of), "time") for n in (6_553_600, 655_360_000)]
    assert [re.search(r"for ([\d.]+) epoch", line)[1] for line in lines] == ["1", "0.01"]  # type: ignore[index]
    assert lines[0].split(" for ")[0] == lines[1].split(" for ")[0]


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
    assert "\n".join(lines).count("tokens not known: plan this stage's recipe alone, with --tokens N; rows taken") == 2
    with pytest.raises(InputError, match="--tokens: .*all.yaml has several stages"):
        plan.run_file(str(file), [], Asked(tokens=10**6), lines.append)
    file.write_text(json.dumps({"stages": [{"sft": sft}], "output": str(tmp_path / "out")}))
    alone: list[str] = []
    plan.run_file(str(file), [], Asked(gpu="h100", gpus=1), alone.append)
    assert "tokens not known: --tokens N says them; rows taken" in "\n".join(alone)
    plan.run_file(str(file), [], Asked(gpu="h100", gpus=1, tokens=10**6), alone.append)
    assert "data      1,000,000 tokens; rows taken" in "\n".join(alone)
