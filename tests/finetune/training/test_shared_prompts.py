"""How rows of one prompt find together: in the order, in micro-batches, in what is counted."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ft.finetune.data.prompt_order import order_of
from hybrid_ft.finetune.training.pair_steps import PromptSampler
from hybrid_ft.finetune.training.shared_prompts import clusters_of, count_work, dealt, divided
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config

ANSWERS = ("chosen_ids", "rejected_ids")


@settings(max_examples=50)
@given(prompts=st.lists(st.integers(0, 9), min_size=1, max_size=40), seed=st.integers(0, 5))
def test_the_order_keeps_a_prompt_s_answers_together(prompts: list[int], seed: int) -> None:
    order = order_of(prompts, seed)
    assert sorted(order) == list(range(len(prompts)))
    changes = sum(prompts[one] != prompts[other] for one, other in pairwise(order))
    assert changes == len(set(prompts)) - 1
    assert order == order_of(prompts, seed)


rows = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 10), st.integers(1, 10)), min_size=1, max_size=30).map(
    lambda pairs: [
        {"prompt_ids": [prompt] * (prompt + 1), "chosen_ids": [7] * good, "rejected_ids": [8] * bad}
        for prompt, good, bad in pairs
    ]
)


@settings(max_examples=60)
@given(rows=rows, budget=st.integers(30, 90), processes=st.integers(1, 3))
def test_portions_hold_every_row_once_within_the_budget(rows: list[dict], budget: int, processes: int) -> None:
    shares = [dealt(rows, ANSWERS, budget, processes, process)[0] for process in range(processes)]
    assert len({len(share) for share in shares}) == 1
    for portions in (divided(rows, ANSWERS, budget), [portion for share in shares for portion in share]):
        assert sorted(row for portion in portions for row in portion) == list(range(len(rows)))
        for portion in portions:
            assert sum(clusters_of([rows[row] for row in portion], ANSWERS, budget)[1]) <= budget


def pair(prompt, good, bad):
    return {"prompt_ids": [prompt] * 40, "chosen_ids": [good] * 10, "rejected_ids": [bad] * 10}


LIST = [pair(5, good, bad) for good, bad in [(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)]]
"""All pairs of four answers."""


def test_all_pairs_of_a_list_take_its_prompt_and_each_answer_once():
    rows = [LIST[0], pair(6, 1, 2), *LIST[1:]]
    assert clusters_of(rows, ANSWERS, 100) == ([[0, 2, 3, 4, 5, 6], [1]], [40 + 4 * 10, 40 + 2 * 10])
    # no room for the fourth answer: what needs it begins anew
    assert clusters_of(LIST, ANSWERS, 75) == ([[0, 1], [2], [3, 4, 5]], [70, 60, 70])


def test_work_is_that_of_what_is_computed():
    count = count_work(preset_config("tiny"), frozen_weights=False)
    one, _ = count(LIST[:1])
    every, apart = count(LIST)
    assert one < every < 2 * one and apart > 6 * one


def test_the_sampler_has_another_order_every_epoch_and_the_same_again():
    prompts = [number // 3 for number in range(60)]
    sampler = PromptSampler(prompts, seed=7)
    first = list(sampler)
    assert first == list(PromptSampler(prompts, seed=7)) != list(PromptSampler(prompts, seed=8))
    assert sum(prompts[one] != prompts[other] for one, other in pairwise(first)) == 19
    sampler.set_epoch(1)
    assert sorted(sampler) == list(range(60)) and list(sampler) != first
