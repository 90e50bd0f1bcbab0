"""How the pairs of a step fall into micro-batches and onto processes."""

from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ft.finetune.training.dpo.batches import chosen_tokens, laid_out_pairs, padded_pairs
from hybrid_ft.finetune.training.pair_steps import PARTS, PairCollator
from hybrid_ft.finetune.training.shared_prompts import clusters_of, count_work


@settings(max_examples=30)
@given(count=st.integers(1, 12), processes=st.integers(1, 3), by_chosen=st.booleans())
def test_shares_of_a_step_add_up_to_one(make_pairs: Any, count: int, processes: int, by_chosen: bool) -> None:
    pairs = [pair | {"row": row} for row, pair in enumerate(make_pairs(count))]
    collators = [
        PairCollator(
            partial(laid_out_pairs, pad_token_id=1, forks=True),
            80,
            lambda pairs: (1, 2),
            chosen_tokens if by_chosen else lambda pair: 1,
            processes,
            process,
        )
        for process in range(processes)
    ]
    steps = [collate(pairs) for collate in collators]
    batches = [batch for step in steps for batch in step["micro_batches"]]
    assert sum(batch["share"] for batch in batches) == pytest.approx(1)
    assert sorted(row for batch in batches if batch["share"] for row in batch["rows"]) == list(range(count))
    whole = sum(len(pair["chosen_ids"]) if by_chosen else 1 for pair in pairs)
    for batch in batches:
        if batch["share"]:
            mine = sum(len(pairs[row]["chosen_ids"]) if by_chosen else 1 for row in batch["rows"])
            assert batch["share"] == pytest.approx(mine / whole)
    assert {step["tokens"] for step in steps} == {sum(clusters_of(pairs, PARTS[1:], 80)[1])}


def test_rows_name_the_first_of_their_prompt() -> None:
    pairs = [
        {"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8, 9]},
        {"prompt_ids": [], "chosen_ids": [7], "rejected_ids": [8]},
        {"prompt_ids": [5, 6], "chosen_ids": [4, 4], "rejected_ids": [3]},
    ]
    batch = padded_pairs(pairs, 1)
    assert batch["prompt_rows"].tolist() == [0, 1, 0, 0, 1, 0]
    assert batch["prompt_lengths"].tolist() == [2, 0, 2, 2, 0, 2]
    assert batch["input_ids"][3].tolist() == [5, 6, 8, 9]


def test_saved_work_is_the_second_prompt() -> None:
    from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config

    count = count_work(preset_config("tiny"), frozen_weights=False)
    long = {"prompt_ids": [5] * 400, "chosen_ids": [7] * 20, "rejected_ids": [8] * 20}
    shared, separate = count([long])
    # 440 tokens instead of 840; the head sees the 40 answer tokens either way
    assert shared / separate == pytest.approx(440 / 840, abs=0.03)
    alone = {"prompt_ids": [], "chosen_ids": [7] * 20, "rejected_ids": [8] * 20}
    assert len(set(count([alone]))) == 1
    other = {"prompt_ids": [5] * 400, "chosen_ids": [9] * 20, "rejected_ids": [6] * 20}
    both, apart = count([long, other])
    assert both / apart == pytest.approx(480 / 1680, abs=0.03)
