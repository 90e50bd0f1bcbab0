"""Recipes of preference stages: which one a recipe is for, and what contradicts it."""

import re
from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.stages import load_stages

ROWS = "model: {path: tiny}\ndata:\n  sources:\n    - path: rows.jsonl\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "mine.yaml").write_text(ROWS + "kto:\n")
    (tmp_path / "rows.yaml").write_text(ROWS)


def test_the_command_or_the_section_says_what_it_is_for() -> None:
    for recipe in (
        load_recipe("mine.yaml"),
        load_recipe("mine.yaml", stage="kto"),
        load_recipe("rows.yaml", stage="kto"),
    ):
        assert recipe.stage == "kto" and recipe.kto and recipe.dpo is None
        assert (recipe.kto.loss, recipe.kto.beta, recipe.train.learning_rate) == ("kto", 0.1, 1e-6)
    assert load_recipe("mine.yaml", ["model.lora={}"]).train.learning_rate == 1e-5
    assert load_recipe("rows.yaml").stage == "sft" and "kto" not in load_recipe("rows.yaml").to_yaml()


def test_a_resolved_recipe_reads_back_the_same() -> None:
    recipe = load_recipe("mine.yaml", ["kto.desirable_weight=1.5"])
    Path("resolved.yaml").write_text(recipe.to_yaml())
    assert load_recipe("resolved.yaml") == recipe and "dpo" not in recipe.to_yaml()


@pytest.mark.parametrize(
    ("overrides", "stage", "said"),
    [
        ([], "sft", "mine.yaml:5: kto: this recipe is for judged answers; run it with hybrid-ft kto, or remove"),
        ([], "dpo", "kto: this recipe is for judged answers; run it with hybrid-ft kto, or remove the section"),
        (["dpo={}"], None, "kto: got dpo and kto; a recipe is one stage, keep one of them"),
        (["reward={}"], "kto", "reward: this recipe is for a reward model; run it with hybrid-ft reward, or remove"),
        (["kto.rows_per_step=1"], "kto", "kto.rows_per_step: got 1; must be at least 2 for loss kto"),
        (
            ["kto.desirable_weight=0", "kto.undesirable_weight=0"],
            "kto",
            "kto.undesirable_weight: got 0; must be above 0",
        ),
        (["train.rows_per_step=8"], "kto", "train.rows_per_step: got 8; for judged answers set kto.rows_per_step"),
        (["train.accumulation=2"], "kto", "train.accumulation: got 2; a step is kto.rows_per_step judged answers"),
        (
            ["data.train_empty_thoughts=false"],
            "kto",
            "data.train_empty_thoughts: got false; of judged answers the whole answer counts",
        ),
        (["data.packing=false"], "kto", "data.packing: got false; judged answers are always laid end to end"),
        (["model.lora={dropout: 0.1}"], "kto", "model.lora.dropout: got 0.1; must be 0 for judged answers"),
        (["kto.reference_cache=rows.jsonl"], "kto", "kto.reference_cache: got 'rows.jsonl', which is a file"),
        (
            ["data.streaming=true"],
            "kto",
            "data.streaming: got true; kto reads its rows whole, as a step holds all answers",
        ),
        (["kto.loss=ktoo"], "kto", r"kto.loss: .*must be 'kto' or 'apo_zero_unpaired'"),
    ],
)
def test_mistakes(overrides: list[str], stage: str | None, said: str) -> None:
    with pytest.raises(InputError) as refused:
        load_recipe("mine.yaml", overrides, stage)
    lines = [line.replace("override ", "") for line in str(refused.value).splitlines()]
    assert any(re.search(said, line) for line in lines), lines


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "evaluate.samples=['hm']",
            r"evaluate.samples: got a list of 1; a reward model writes no answers, leave it out",
        ),
        ("model.from_scratch=true", "model.from_scratch: got true; a reward model needs trained weights"),
        ("model.new_special_tokens=['<x>']", "model.new_special_tokens: got .*; no model that it is to score has them"),
        ("train.rows_per_step=8", "train.rows_per_step: got 8; for pairs set reward.pairs_per_step"),
        ("data.packing=false", "data.packing: got false; pairs are always laid end to end"),
    ],
)
def test_what_a_reward_model_does_not_take(override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_recipe("rows.yaml", [override], "reward")


def test_a_reward_model_learns_at_trl_s_rate() -> None:
    for overrides, rate in (([], 1e-5), (["model.lora={}"], 1e-4)):
        recipe = load_recipe("rows.yaml", overrides, "reward")
        assert recipe.stage == "reward" and recipe.reward and recipe.train.learning_rate == rate
        assert recipe.pairs_or_rows == recipe.reward.pairs_per_step == 32


def test_one_row_a_step_is_enough_without_a_kl_term() -> None:
    recipe = load_recipe("mine.yaml", ["kto.rows_per_step=1", "kto.loss=apo_zero_unpaired"])
    assert recipe.kto and not recipe.kto.has_kl


def test_a_stage_of_a_file() -> None:
    Path("all.yaml").write_text("stages:\n  - sft: rows.yaml\n  - kto: mine.yaml\n")
    sft, kto = load_stages("all.yaml", ["kto.kto.beta=0.2"]).stages
    assert sft.recipe and kto.recipe and kto.recipe.kto and kto.recipe.kto.beta == 0.2
    assert (kto.kind, kto.recipe.model.path, kto.folder.name) == ("kto", "runs/all/1-sft/model", "2-kto")
