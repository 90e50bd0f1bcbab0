"""Recipes of reward models: those that ship are what their headers say; two processes take the steps of one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.cli import main
from hybrid_ft.finetune.recipe.load import load_recipe


@pytest.mark.parametrize(("name", "rate"), [("reward", 1e-5), ("reward-lora", 1e-4)])
def test_olmo_hybrid(name: str, rate: float) -> None:
    recipe = load_recipe(f"olmo-hybrid-7b/{name}", stage="reward")
    assert recipe.reward and (recipe.reward.pairs_per_step, recipe.reward.center_rewards_coefficient) == (128, 0.01)
    assert (recipe.train.learning_rate, recipe.train.schedule, recipe.train.warmup) == (rate, "linear", 0.03)
    assert bool(recipe.model.lora) == name.endswith("lora")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sharded=false", "sharded=true"])
def test_two_processes_take_the_steps_of_one(tmp_path: Path, tiny_base: Path, monkeypatch: Any, how: str) -> None:
    """By ``hybrid-ft launch``: losses, scores and gradients of every step, and the held-out measures."""
    rows = [
        {"prompt": f"ab{number // 2}?", "chosen": "cd" * (1 + number % 3), "rejected": f"{number} no"}
        for number in range(26)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "score.yaml").write_text(
        f"model: {{path: {tiny_base}}}\n"
        "data: {sources: [{path: rows.jsonl}], eval: {count: 6}, max_length: 100}\n"
        "reward: {pairs_per_step: 8, center_rewards_coefficient: 0.01}\n"
        "train: {epochs: 2, batch_tokens: 120, learning_rate: 1e-4, warmup: 0, schedule: constant}\n"
        "evaluate: {every: 2}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["reward", "score.yaml", "output=of-1"]) == 0
    command = [sys.executable, "-m", "hybrid_ft.cli", "launch", "score.yaml", "--processes=2", "output=of-2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, f"train.{how}"], env=environment, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (
        [json.loads(line) for line in (tmp_path / f"of-{count}" / "metrics.jsonl").read_text().splitlines()]
        for count in (1, 2)
    )
    assert len(one) == len(two) > 6
    for alone, together in zip(one, two, strict=True):
        assert alone.keys() == together.keys()
        for name in alone.keys() - {"tokens_per_s", "seconds", "memory"}:
            assert together[name] == pytest.approx(alone[name], rel=2e-3, abs=2e-5), (alone["step"], name)
