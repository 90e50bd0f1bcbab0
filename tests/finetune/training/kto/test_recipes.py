"""Recipes that ship for KTO: the 7B ones are what their headers say, the quick one runs to its end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_ft.finetune.recipe.load import load_recipe


@pytest.mark.parametrize(("name", "rate"), [("instruct-kto", 5e-7), ("instruct-kto-lora", 1e-5)])
def test_olmo_hybrid(name: str, rate: float) -> None:
    recipe = load_recipe(f"olmo-hybrid-7b/{name}", stage="kto")
    assert recipe.kto and (recipe.kto.loss, recipe.kto.beta, recipe.kto.rows_per_step) == ("kto", 0.1, 64)
    assert (recipe.train.learning_rate, recipe.train.schedule, recipe.train.warmup) == (rate, "cosine", 0.1)
    assert bool(recipe.model.lora) == name.endswith("lora")


@pytest.mark.slow
def test_the_quick_one_runs_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the base and rows that ship, a few steps of each stage; the result opens in plain transformers."""
    from transformers import AutoModelForCausalLM

    from hybrid_ft.cli import main

    monkeypatch.chdir(tmp_path)
    short = ["sft.train.steps=4", "kto.train.steps=3", "kto.data.sources.0.count=200", "evaluate.max_new_tokens=1"]
    assert main(["run", "quickstart-kto", *short]) == 0
    place = tmp_path / "runs" / "quickstart-kto"
    lines = [json.loads(line) for line in (place / "2-kto" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[0]["loss"] == pytest.approx(0.5, abs=1e-3)
    assert AutoModelForCausalLM.from_pretrained(place / "2-kto" / "model").num_parameters() > 1e6


@pytest.mark.slow
@pytest.mark.parametrize("how", ["train.sharded=false", "train.sharded=true", "train.sequence_parallel=2"])
def test_two_processes_take_the_steps_of_one(tmp_path: Path, tiny_base: Path, tiny_tokenizer: object, how: str) -> None:
    """By ``hybrid-ft launch``: losses, KL terms and gradients of every step, and the held-out measures."""
    rows = [
        {
            "prompt": f"ab{number // 2}?",
            "completion": "cd"[: 1 + number % 2] * (1 + number % 3),
            "label": number % 3 > 0,
        }
        for number in range(26)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "kto.yaml").write_text(
        f"model: {{path: {tiny_base}}}\n"
        "data: {sources: [{path: rows.jsonl}], eval: {count: 6}, max_length: 100}\n"
        "kto: {rows_per_step: 8, beta: 0.5}\n"
        "train: {epochs: 2, batch_tokens: 120, learning_rate: 1e-4, warmup: 0, schedule: constant}\n"
        "evaluate: {every: 2}\n"
    )
    found = {}
    for processes in (1, 2):
        command = [sys.executable, "-m", "hybrid_ft.cli", "launch", "kto.yaml", f"--processes={processes}"]
        command += [f"output=of-{processes}", *([how] if processes > 1 else [])]
        done = subprocess.run(
            command,
            check=False,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = (tmp_path / f"of-{processes}" / "metrics.jsonl").read_text().splitlines()
        found[processes] = [json.loads(line) for line in lines]
    assert len(found[1]) == len(found[2]) > 6
    for one, two in zip(found[1], found[2], strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"tokens_per_s", "seconds", "memory"}:
            assert two[name] == pytest.approx(one[name], rel=2e-3, abs=2e-5), (one["step"], name)
