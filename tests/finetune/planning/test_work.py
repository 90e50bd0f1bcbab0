"""Rows, tokens and steps of a recipe, read where the rows are and told where they are not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from plan_lines import part

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.planning import plan
from hybrid_ft.finetune.planning.plan import Asked
from hybrid_ft.finetune.recipe.schema import Recipe


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


@pytest.mark.parametrize("model", [{}, {"lora": {}}])
def test_a_streams_reference_takes_memory_and_time(planned: Any, model: dict[str, Any]) -> None:
    """It goes with each micro-batch, from a copy of what is trained."""
    asked, train = Asked(gpu="b300", gpus=8, tokens=10**9), {"steps": 100, "accumulation": 1}
    more = {"model": model, "train": train, "dpo": {"pairs_per_step": 32}}
    whole, streamed = (planned(asked, data={"streaming": one}, **more) for one in (False, True))
    assert "reference" in part(streamed, "memory") and "reference" not in part(whole, "memory")
    hours = [float(re.findall(r"([\d.]+) h", part(lines, "time"))[-1]) for lines in (whole, streamed)]
    assert hours[1] > 1.1 * hours[0]


def test_pairs_have_two_answers_a_prompt(planned: Any) -> None:
    lines = planned(Asked(gpu="h100", gpus=1, tokens=10**8), model={"lora": {}}, dpo={"pairs_per_step": 32})
    assert part(lines, "memory") and part(lines, "time")
