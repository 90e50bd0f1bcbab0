"""Rates of products and copies are judged by the kind of GPU."""

from hybrid_ft.finetune.doctor import arithmetic


def test_rates_are_judged() -> None:
    name = "NVIDIA H100 80GB HBM3"
    assert not arithmetic.judged([7.0e14, 6.9e14], name).red
    assert "GPU 1 is slower" in arithmetic.judged([7.0e14, 5.0e14], name).said
    slow = arithmetic.judged([3.0e14, 3.0e14], name)
    assert slow.red and "of 989 stated" in slow.said
    assert not arithmetic.judged([1.0e13], "NVIDIA T4").red
