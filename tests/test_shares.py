"""A share of long tests' cases: as many as asked for, others with another seed, all of them in some."""

from tests.conftest import is_drawn

NAMES = [f"tests/test_a.py::test_b[{number}]" for number in range(1000)]


def test_a_share_is_drawn_and_another_seed_draws_others():
    drawn = {seed: {name for name in NAMES if is_drawn(name, 0.5, seed)} for seed in map(str, range(12))}
    assert all(400 < len(some) < 600 for some in drawn.values())
    assert drawn["0"] != drawn["1"]
    assert set.union(*drawn.values()) == set(NAMES)
    assert all(is_drawn(name, 1, "0") and not is_drawn(name, 0, "0") for name in NAMES)
