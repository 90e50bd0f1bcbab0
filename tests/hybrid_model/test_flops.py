from hypothesis import given
from hypothesis import strategies as st

from hybrid_ft.hybrid_model.flops import forward_flops, training_flops


@given(prompt=st.integers(0, 50), answers=st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_a_fork_costs_what_its_rows_cost_less_the_prompts_repeats(make_config, prompt, answers):
    config = make_config()
    fork = forward_flops(config, [prompt, *answers], [-1, *[0] * len(answers)])
    rows = forward_flops(config, [prompt + n for n in answers])
    repeat = forward_flops(config, [prompt])
    for kind in ("weights", "attention", "delta_rule", "head"):
        assert getattr(fork, kind) == getattr(rows, kind) - (len(answers) - 1) * getattr(repeat, kind)


def test_order_does_not_matter_and_depth_does(make_config):
    config = make_config()
    chain = forward_flops(config, [3, 4, 5], [-1, 0, 1])
    assert chain == forward_flops(config, [5, 3, 4], [2, -1, 1])
    assert chain == forward_flops(config, [12])
    assert chain.attention > forward_flops(config, [3, 4, 5], [-1, 0, 0]).attention


def test_training(make_config):
    config = make_config()
    forward = forward_flops(config, [10], head_tokens=4)
    assert training_flops(config, [10], head_tokens=4) == 3 * forward.total
    saved = training_flops(config, [10], head_tokens=4) - training_flops(
        config, [10], head_tokens=4, frozen_weights=True
    )
    assert saved == forward.weights + forward.head
