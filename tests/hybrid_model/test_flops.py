import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoConfig

from hybrid_ft.hybrid_model.families.known import FAMILIES, family_of_type
from hybrid_ft.hybrid_model.flops import forward_flops, training_flops


@pytest.fixture
def tiny_config_of():
    def make(kind, **fields):
        if kind not in CONFIG_MAPPING:
            pytest.skip("this transformers does not have it")
        sizes = {"vocab_size": 128, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1}
        return AutoConfig.for_model(kind, **sizes | dict(family_of_type(kind).tiny[kind]) | fields)

    return make


@pytest.mark.parametrize("kind", [kind for family in FAMILIES for kind in family.tiny])
def test_every_family_is_counted(tiny_config_of, kind):
    counted = forward_flops(tiny_config_of(kind), [10, 4], [-1, 0])
    assert counted.weights > 0 and counted.attention > 0 and counted.head > 0
    assert counted.delta_rule > 0 or kind.startswith(("lfm", "olmo2", "olmo3"))


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


def test_a_window_sees_its_last_tokens_across_a_fork(tiny_config_of):
    """Each query of each token counted one by one."""
    config = tiny_config_of("olmo3", sliding_window=5)
    lengths, parents, histories = [7, 4, 2], [-1, 0, 1], [0, 7, 11]
    per_pair = 4 * config.num_attention_heads * config.hidden_size // config.num_attention_heads
    pairs = 0
    for kind in config.layer_types:
        window = 5 if kind == "sliding_attention" else 10**9
        pairs += sum(min(past + i + 1, window) for n, past in zip(lengths, histories) for i in range(n))
    assert forward_flops(config, lengths, parents).attention == per_pair * pairs


def test_of_experts_the_chosen_ones_count(tiny_config_of):
    few, many = (tiny_config_of("qwen3_next", num_experts_per_tok=n) for n in (2, 4))
    expert = 3 * few.hidden_size * few.moe_intermediate_size
    more = forward_flops(many, [10]).weights - forward_flops(few, [10]).weights
    assert more == 2 * 10 * 2 * expert * few.num_hidden_layers
