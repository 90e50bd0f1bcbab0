"""How large a step is: said once, in its own unit, whatever the number of processes."""

from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.training.sft.stage import a_step


@pytest.fixture
def loaded(tmp_path: Path):
    """``loaded(train="...", packing=True)``: the recipe with these keys of ``train``."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')

    def go(train: str, packing: bool = True, dpo: bool = False):
        file = tmp_path / "r.yaml"
        data = f"{{sources: [{{path: {rows}}}], max_length: 8, packing: {str(packing).lower()}}}"
        file.write_text(f"model: {{path: tiny}}\ndata: {data}\ntrain: {{batch_tokens: 64, batch_size: 4, {train}}}\n")
        return load_recipe(file, [], stage="dpo" if dpo else "sft")

    return go


@pytest.mark.parametrize(
    ("train", "packing", "micro_batches"),
    [
        ("tokens_per_step: 256", True, 4),
        ("rows_per_step: 12", False, 3),
        ("accumulation: 5", True, 5),
        ("accumulation: 5", False, 5),
        ("epochs: 2", True, 1),
    ],
)
def test_micro_batches_follow(loaded, train, packing, micro_batches):
    assert a_step(loaded(train, packing)) == micro_batches


@pytest.mark.parametrize(
    ("train", "packing", "message"),
    [
        (
            "tokens_per_step: 100",
            True,
            "train.tokens_per_step: got 100; must be a multiple of train.batch_tokens (64), such as 128",
        ),
        (
            "tokens_per_step: 9",
            True,
            "train.tokens_per_step: got 9; must be a multiple of train.batch_tokens (64), such as 64",
        ),
        (
            "rows_per_step: 6",
            False,
            "train.rows_per_step: got 6; must be a multiple of train.batch_size (4), such as 8",
        ),
        ("rows_per_step: 8", True, "train.rows_per_step: got 8; rows are packed, set train.tokens_per_step"),
        ("tokens_per_step: 64", False, "train.tokens_per_step: got 64; rows are not packed, set train.rows_per_step"),
        (
            "tokens_per_step: 64, accumulation: 2",
            True,
            "train.accumulation: got 2; train.tokens_per_step says it already",
        ),
    ],
)
def test_what_cannot_be_a_step_is_refused(loaded, train, packing, message):
    with pytest.raises(InputError) as caught:
        loaded(train, packing)
    assert str(caught.value).endswith(f":3: {message}")


@pytest.mark.parametrize("train", ["tokens_per_step: 64", "rows_per_step: 4"])
def test_a_step_of_pairs_has_a_key_of_its_own(loaded, train):
    with pytest.raises(InputError, match=r"train\.(tokens|rows)_per_step: got \d+; for pairs set dpo.pairs_per_step"):
        loaded(train, dpo=True)
