"""The recipes of Olmo Hybrid 7B: they resolve, hold what Ai2 published, and take three steps on a small model."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.stages import load_stages

SFT = ["think-sft", "instruct-sft", "think-sft-lora", "instruct-sft-lora"]
DPO = ["instruct-dpo", "instruct-dpo-lora"]
REAL = pytest.mark.skipif(
    not ("HYBRID_FT_REAL_DATA" in os.environ and "HYBRID_FT_REAL_TOKENIZER" in os.environ),
    reason="HYBRID_FT_REAL_DATA and HYBRID_FT_REAL_TOKENIZER are not set",
)


@pytest.mark.parametrize("name", ["think-sft", "instruct-sft"])
def test_sft_as_published(name: str) -> None:
    recipe = load_recipe(f"olmo-hybrid-7b/{name}", stage="sft")
    train = recipe.train
    assert train.learning_rate == 2.5e-5 and train.schedule == "linear" and train.warmup == 0.03
    assert (train.weight_decay, train.betas, train.max_grad_norm, train.epochs) == (0.0, [0.9, 0.95], 1.0, 2.0)
    assert train.tokens_per_step == 2**20 and recipe.data.max_length == 32768


def test_dpo_as_published() -> None:
    recipe = load_recipe("olmo-hybrid-7b/instruct-dpo", stage="dpo")
    train, dpo = recipe.train, recipe.dpo
    assert dpo is not None
    assert (dpo.loss, dpo.beta, dpo.pairs_per_step, dpo.label_smoothing) == ("sigmoid_norm", 5.0, 128, 0.0)
    assert (train.learning_rate, train.schedule, train.warmup, train.weight_decay) == (1e-6, "linear", 0.1, 0.0)
    assert recipe.data.max_length == 16384 and train.epochs == 1.0


@pytest.mark.parametrize("name", ["instruct", "instruct-lora"])
def test_stages_resolve(name: str) -> None:
    stages = load_stages(f"olmo-hybrid-7b/{name}").stages
    assert [stage.kind for stage in stages] == ["sft", "dpo", "export"]
    assert stages[2].dtype == "bfloat16"


@pytest.mark.parametrize("name", [*SFT, *DPO, "instruct", "instruct-lora"])
def test_source_stands_in_the_header(name: str, root: Path) -> None:
    text = (root / f"recipes/olmo-hybrid-7b/{name}.yaml").read_text()
    assert f"olmo-hybrid-7b/{name}\n" in text
    stages = name in ("instruct", "instruct-lora")
    assert stages or "# Source" in text


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the tiny shape with random weights and the vocabulary of the real tokenizer."""
    from transformers import AutoTokenizer

    import hybrid_ft
    from hybrid_ft.hybrid_model.checkpoint.save import save

    folder = tmp_path_factory.mktemp("small")
    tokenizer = AutoTokenizer.from_pretrained(os.environ["HYBRID_FT_REAL_TOKENIZER"])
    model = hybrid_ft.load("tiny", from_scratch=True, vocab_size=-(-len(tokenizer) // 64) * 64, dtype="float32")
    save(model, folder, tokenizer)
    return folder


def on_real_files(kind: str, small: Path, model: bool = True) -> list[str]:
    file = {"sft": "sft/tulu3_sft_sample.jsonl", "dpo": "preference/tulu3_preference_sample.jsonl"}[kind]
    changes = [
        f"data.sources.0.path={os.environ['HYBRID_FT_REAL_DATA']}/{file}",
        "data.max_length=400",
        "data.max_dropped=1",
        "train.batch_tokens=800",
        "train.steps=3",
    ]
    changes += ["dpo.pairs_per_step=3"] if kind == "dpo" else ["train.tokens_per_step=null"]
    tokenizer = os.environ["HYBRID_FT_REAL_TOKENIZER"]
    return changes + ([f"model.path={small}", f"model.tokenizer={tokenizer}"] if model else [])


@REAL
@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("name", [*SFT, *DPO])
def test_three_steps(name: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from hybrid_ft.finetune.training.dpo import stage as dpo
    from hybrid_ft.finetune.training.sft import stage as sft

    monkeypatch.chdir(tmp_path)
    kind: Any = "dpo" if name in DPO else "sft"
    recipe = load_recipe(f"olmo-hybrid-7b/{name}", on_real_files(kind, small), stage=kind)
    screen = io.StringIO()
    assert (dpo if kind == "dpo" else sft).run(recipe, Console(file=screen, width=200)) == 0
    run = tmp_path / f"runs/{name}"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [1, 2, 3]
    first = 0.6931 if kind == "dpo" else 11.5  # the logarithm of the vocabulary
    assert steps[0]["loss"] == pytest.approx(first, rel=0.1 if kind == "sft" else 1e-3)
    assert (run / ("merged" if recipe.model.lora else "model") / "model.safetensors").exists()


@REAL
@pytest.mark.real_data
@pytest.mark.slow
def test_from_base_to_instruct_in_one_command(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from hybrid_ft.finetune import pipeline

    monkeypatch.chdir(tmp_path)
    changes = [f"{kind}.{change}" for kind in ("sft", "dpo") for change in on_real_files(kind, small, kind == "sft")]
    screen = io.StringIO()
    assert pipeline.run("olmo-hybrid-7b/instruct", changes, Console(file=screen, width=200)) == 0
    assert (tmp_path / "runs/instruct/3-export/model/model.safetensors").exists()
