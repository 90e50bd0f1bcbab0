"""What the record of Nemotron-Flash says of its work."""

from hybrid_ft.hybrid_model.families.nemotron_flash.config import NemotronFlashConfig
from hybrid_ft.hybrid_model.flops import forward_flops


def test_they_count_in_the_operations(models):
    config = models[1].config
    with_them = forward_flops(config, [10, 4])
    without = forward_flops(NemotronFlashConfig.from_dict(config.to_dict() | {"num_memory_tokens": 0}), [10, 4])
    assert with_them.weights * 14 == without.weights * (14 + 5)
    pairs = sum(5 * n + n * (n + 1) // 2 for n in (10, 4)) + 5 * 6 // 2
    assert with_them.attention == without.attention // (10 * 11 // 2 + 4 * 5 // 2) * pairs
    assert with_them.head == without.head
