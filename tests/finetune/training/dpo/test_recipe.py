"""The recipe's dpo section: what it resolves to and what is refused."""

import re
from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe

PAIRS = "model: {path: tiny}\ndata:\n  sources:\n    - path: pairs.jsonl\ndpo:\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    (tmp_path / "mine.yaml").write_text(PAIRS)


def refused(*overrides: str, stage: str | None = "dpo") -> list[str]:
    with pytest.raises(InputError) as error:
        load_recipe("mine.yaml", overrides, stage=stage)
    return str(error.value).splitlines()


def test_defaults_are_those_of_olmo_hybrid() -> None:
    recipe = load_recipe("mine.yaml")
    assert recipe.dpo is not None
    assert (recipe.dpo.loss, recipe.dpo.beta, recipe.dpo.pairs_per_step) == ("sigmoid_norm", 5.0, 32)
    assert recipe.train.learning_rate == 1e-6
    assert load_recipe("mine.yaml", ["model.lora={}"]).train.learning_rate == 1e-5


def test_other_losses_have_a_beta_of_a_tenth() -> None:
    recipe = load_recipe("mine.yaml", ["dpo.loss=sigmoid"])
    assert recipe.dpo is not None and recipe.dpo.beta == 0.1


def test_the_command_says_whether_rows_are_pairs(tmp_path: Path) -> None:
    (tmp_path / "rows.yaml").write_text(PAIRS.removesuffix("dpo:\n"))
    assert load_recipe("rows.yaml").dpo is None
    assert load_recipe("rows.yaml", stage="sft").train.learning_rate == 2.5e-5
    assert load_recipe("rows.yaml", stage="dpo").train.learning_rate == 1e-6
    assert refused(stage="sft") == [
        "mine.yaml:5: dpo: this recipe is for pairs; run it with hybrid-ft dpo, or remove the section"
    ]


@pytest.mark.parametrize("overrides", [[], ["dpo.loss=robust", "dpo.label_smoothing=0.1"]])
def test_resolved_recipe_reads_back_the_same(overrides: list[str]) -> None:
    recipe = load_recipe("mine.yaml", overrides)
    Path("resolved.yaml").write_text(recipe.to_yaml())
    assert load_recipe("resolved.yaml") == recipe


def test_a_recipe_of_rows_says_nothing_of_pairs(tmp_path: Path) -> None:
    (tmp_path / "rows.yaml").write_text(PAIRS.removesuffix("dpo:\n"))
    assert "dpo" not in load_recipe("rows.yaml").to_yaml()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["dpo.loss=sigmod"], r"dpo.loss: .*must be 'sigmoid_norm', .*did you mean sigmoid\?"),
        (["dpo.loss=sigmoid", "dpo.beta=5"], "dpo.beta: got 5 with loss sigmoid, which adds up"),
        (["dpo.loss=apo_zero", "dpo.beta=1.5"], "dpo.beta: got 1.5 with loss apo_zero"),
        (["dpo.beta=0"], "dpo.beta: .*must be greater than 0"),
        (["dpo.label_smoothing=0.1"], "dpo.label_smoothing: got 0.1; sigmoid_norm takes none, use one of robust"),
        (["dpo.loss=exo_pair"], "dpo.label_smoothing: must be above 0 for exo_pair"),
        (["dpo.loss=robust", "dpo.label_smoothing=0.5"], "dpo.label_smoothing: .*must be less than 0.5"),
        (["train.accumulation=4"], "train.accumulation: got 4; a step is dpo.pairs_per_step pairs"),
        (["data.packing=false"], "data.packing: got false; pairs are always"),
        (["data.train_empty_thoughts=false"], "data.train_empty_thoughts: got false; of pairs the whole answer counts"),
        (["model.lora.dropout=0.1"], "model.lora.dropout: got 0.1; must be 0 for pairs"),
        (["dpo.reference_cache=pairs.jsonl"], "dpo.reference_cache: got 'pairs.jsonl', which is a file"),
        (["dpo.pairs=3"], r"unknown key dpo.pairs\b"),
        (["loss_type=ipo"], r"unknown key loss_type; did you mean dpo.loss\?"),
    ],
)
def test_mistakes(overrides: list[str], said: str) -> None:
    lines = [line.replace("override ", "") for line in refused(*overrides)]
    assert any(re.search(said, line) for line in lines), lines


@pytest.mark.parametrize("loss", ["sigmoid_norm", "ipo"])
def test_beta_above_1_is_right_per_token(loss: str) -> None:
    recipe = load_recipe("mine.yaml", [f"dpo.loss={loss}", "dpo.beta=5"])
    assert recipe.dpo is not None and recipe.dpo.beta == 5.0
