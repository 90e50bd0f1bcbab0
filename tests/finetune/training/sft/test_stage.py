"""From files on disk to a model folder, with nothing in between replaced."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch


def write_rows(path: Path, count: int) -> None:
    """Questions whose answer is the letter asked for, twice."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    chance = random.Random(0)
    with open(path, "w") as file:
        for index in range(count):
            letter = letters[index % 26]
            question = f"{chance.choice(letters)}{index}: {letter}?"
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": letter * 2}]
            file.write(json.dumps({"messages": turns}) + "\n")


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_base: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl", 40)
    file = tmp_path / "letters.yaml"
    file.write_text(
        f"""
model:
  path: {tiny_base}
data:
  sources:
    - path: rows.jsonl
  eval:
    count: 8
  max_length: 96
train:
  steps: 12
  batch_tokens: 128
  learning_rate: 2.0e-2
  save_every: 1
evaluate:
  every: 6
  answers: 2
  samples: ["c?"]
  max_new_tokens: 4
output: {tmp_path}/run
"""
    )
    return file


def test_from_files_to_a_model(recipe_file, tmp_path, monkeypatch):
    from rich.console import Console
    from transformers import AutoTokenizer, OlmoHybridForCausalLM

    from hybrid_ft.finetune.recipe.load import load_recipe
    from hybrid_ft.finetune.training.sft import stage as sft

    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(recipe_file)
    screen = io.StringIO()
    assert sft.run(recipe, Console(file=screen, width=160)) == 0
    run = tmp_path / "run"
    assert load_recipe(run / "recipe.yaml") == recipe
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.5
    held_out = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert (
        len(held_out) == 2 and held_out[-1] < json.loads((run / "run.json").read_text())["before"]["held_out"]["loss"]
    )
    model = OlmoHybridForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "c?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**prompt, do_sample=False, max_new_tokens=4)
    after = json.loads((run / "samples-after.jsonl").read_text())
    assert after["prompt"] == "c?"
    assert tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True) == after["answer"]
    for said in ("all trained", "12 steps", "held-out loss", "hybrid-ft chat"):
        assert said in screen.getvalue()


WITHOUT_THIS_PROJECT = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, question, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(adapter)
messages = [{"role": "user", "content": question}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
with torch.no_grad():
    tokens = model.generate(**prompt, do_sample=False, max_new_tokens=16, eos_token_id=None)
    torch.save([model(**prompt).logits, tokens], out)
assert "hybrid_ft" not in sys.modules
"""


@pytest.mark.slow
def test_an_adapter_is_the_same_model_where_this_project_is_not(recipe_file, tmp_path, tiny_base):
    """Logits and greedy tokens in a process of plain transformers and PEFT."""
    from rich.console import Console
    from transformers import AutoTokenizer

    from hybrid_ft.finetune.generation.generate import load_for_answers
    from hybrid_ft.finetune.recipe.load import load_recipe
    from hybrid_ft.finetune.training.sft import stage as sft

    recipe = load_recipe(recipe_file, ["model.lora={rank: 4}", "evaluate.every=100"])
    assert sft.run(recipe, Console(file=io.StringIO())) == 0
    adapter, out = tmp_path / "run/adapter", tmp_path / "plain.pt"
    (tmp_path / "plain.py").write_text(WITHOUT_THIS_PROJECT)  # a script's own folder comes first in its path
    subprocess.run([sys.executable, tmp_path / "plain.py", tiny_base, adapter, "c?", out], check=True, cwd=tmp_path)
    logits, tokens = torch.load(out)
    model, _ = load_for_answers(str(adapter))
    prompt = AutoTokenizer.from_pretrained(adapter).apply_chat_template(
        [{"role": "user", "content": "c?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        assert float((model(**prompt).logits - logits).norm() / logits.norm()) < 1e-5
        # PEFT alone does not read the end tokens beside an adapter
        got = model.generate(**prompt, do_sample=False, max_new_tokens=16, eos_token_id=None)
        assert got.tolist() == tokens.tolist()


def command(recipe_file: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "hybrid_ft.cli", "sft", str(recipe_file), f"output={output}"]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_killed_at_random_moments_by_the_system(recipe_file, tmp_path, lora):
    """kill -9 from outside, whatever the process is doing, with a save every step; then the same command again."""
    if lora:
        recipe_file.write_text(
            recipe_file.read_text().replace("data:\n", "  lora: {rank: 4, alpha: 8, dropout: 0.1}\ndata:\n", 1)
        )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    began = time.monotonic()
    subprocess.run(command(recipe_file, tmp_path / "whole"), check=True, **options)
    takes = time.monotonic() - began
    chance = random.Random(lora)
    for _ in range(4):
        child = subprocess.Popen(
            command(recipe_file, tmp_path / "cut"), cwd=tmp_path, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            child.wait(timeout=takes * chance.uniform(0.4, 1.0))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
    done = subprocess.run(command(recipe_file, tmp_path / "cut"), check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    result = "adapter/adapter_model.safetensors" if lora else "model/model.safetensors"
    assert (tmp_path / "cut" / result).read_bytes() == (tmp_path / "whole" / result).read_bytes()


@pytest.mark.slow
@pytest.mark.real_data
def test_gsm8k_with_the_olmo_tokenizer(tmp_path, root):
    """The shipped recipe on the real files: held-out loss falls within 10 steps."""
    data, tokenizer = os.environ.get("HYBRID_FT_REAL_DATA"), os.environ.get("HYBRID_FT_REAL_TOKENIZER")
    if not data or not tokenizer:
        pytest.skip("HYBRID_FT_REAL_DATA and HYBRID_FT_REAL_TOKENIZER are not set")
    from rich.console import Console

    from hybrid_ft.finetune.recipe.load import load_recipe
    from hybrid_ft.finetune.training.sft import stage as sft

    recipe = load_recipe(
        root / "recipes/gsm8k/tiny.yaml",
        [
            f"data.sources.0.path={data}/sft/gsm8k_train.jsonl",
            f"data.eval.sources.0.path={data}/sft/gsm8k_test.jsonl",
            "data.sources.0.name=null",
            "data.eval.sources.0.name=null",
            "data.eval.sources.0.count=40",
            f"model.tokenizer={tokenizer}",
            f"output={tmp_path}/run",
            "train.steps=10",
            "evaluate.every=10",
        ],
    )
    assert sft.run(recipe, Console(file=io.StringIO())) == 0
    before = json.loads((tmp_path / "run/run.json").read_text())["before"]["held_out"]["loss"]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (after,) = (line["eval_loss"] for line in lines if "eval_loss" in line)
    assert before == pytest.approx(torch.tensor(100288.0).log().item(), rel=0.01)
    assert after < before - 1
    assert all(line["padding"] == 0 for line in lines if "loss" in line)
