"""What families are described by: operations, patterns of layers, and which errors are a config's."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from hybrid_ft.hybrid_model.families.family import Family, Mixing, at, attention, delta, is_of_sizes, is_scorer, ssd


def config(**fields: Any) -> Any:
    return SimpleNamespace(**{"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2} | fields)


@pytest.mark.parametrize(
    ("fields", "sizes", "found"),
    [
        # a pair costs 2 multiplications and additions for each of a head's 16 places, in scores and in values
        ({}, {}, Mixing(per_pair=4 * (2 * 16 + 2 * 16), exchanged=4 * 16 + 2 * 16 + 2 * 16 + 4 * 16)),
        ({"head_dim": 8}, {}, Mixing(per_pair=4 * 4 * 8, exchanged=2 * 8 * (4 + 2))),
        ({"head_dim": None}, {"window": 5}, Mixing(per_pair=256, exchanged=192, window=5)),
        ({"num_key_value_heads": None}, {}, Mixing(per_pair=256, exchanged=256)),
        # multi-head latent attention: values are narrower than keys
        ({}, {"query": 24, "value": 10}, Mixing(per_pair=2 * 4 * 34, exchanged=34 * 6)),
    ],
)
def test_attention_is_counted_by_heads_and_widths(fields: Any, sizes: Any, found: Mixing) -> None:
    assert attention(config(**fields), **sizes) == found


def test_states_are_counted_by_the_heads_that_hold_them() -> None:
    assert delta(4, 8, 16).per_token == delta(4, 8, 16, key_heads=2).per_token == 6 * 4 * 8 * 16
    assert delta(4, 8, 16).exchanged - delta(4, 8, 16, key_heads=2).exchanged == 2 * 2 * 8
    assert ssd(4, 8, 16).per_token == ssd(4, 8, 16, groups=2).per_token == 4 * 4 * 8 * 16
    assert ssd(4, 8, 16, groups=2).exchanged - ssd(4, 8, 16).exchanged == 2 * 16


def test_a_pattern_of_no_layers_matches_nothing() -> None:
    """An empty alternative would match each layer's."""
    pattern = at([1, 10], r"mixer\.q_proj")
    assert [n for n in range(12) if re.fullmatch(pattern, f"{n}.mixer.q_proj")] == [1, 10]
    assert not any(re.search(at([], "q_proj"), name) for name in (".q_proj", "0.q_proj", "q_proj", ""))


def test_a_row_is_shared_by_as_many_as_the_mixer_of_fewest_heads() -> None:
    def family(heads: Any) -> Family:
        return Family(name="a", model_types={"a": "A"}, mixings=lambda config: [], lora=lambda config: {}, heads=heads)

    assert family(lambda config: (8, config.least)).most_processes(config(least=2)) == 2
    assert family(None).most_processes(config()) == 1
    assert not family(None).shares_heads


@pytest.mark.parametrize(
    ("architectures", "scores"),
    [(None, False), ([], False), (["LlamaForCausalLM"], False), (["A", "LlamaForSequenceClassification"], True)],
)
def test_a_scorer_is_known_by_its_architecture(architectures: Any, scores: bool) -> None:
    assert is_scorer(config(architectures=architectures)) is scores


@pytest.mark.parametrize(
    ("error", "of_sizes"),
    [
        (RuntimeError("Trying to create tensor with negative dimension -1: [-1, 4]"), True),
        (RuntimeError("Storage size calculation overflowed with sizes=[2, 9223372036854775807]"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ZeroDivisionError("integer modulo by zero"), True),
        (TypeError("unsupported operand"), True),
    ],
)
def test_an_allocators_failure_is_no_fault_of_a_config(error: Exception, of_sizes: bool) -> None:
    assert is_of_sizes(error) is of_sizes
