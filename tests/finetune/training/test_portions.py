"""How the rows of a step fall into micro-batches and onto processes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ft.finetune.training.portions import in_portions

sizes = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@settings(max_examples=60)
@given(sizes=sizes, budget=st.integers(50, 200), processes=st.integers(1, 5))
def test_every_pair_is_in_one_micro_batch_and_processes_have_as_many(
    sizes: list[int], budget: int, processes: int
) -> None:
    shares = in_portions(sizes, budget, processes)
    assert len(shares) == processes and len({len(share) for share in shares}) == 1
    portions = [portion for share in shares for portion in share]
    assert sorted(pair for portion in portions for pair in portion) == list(range(len(sizes)))
    assert all(sum(sizes[pair] for pair in portion) <= budget for portion in portions)
    assert all(portions) or len(sizes) < len(portions)
