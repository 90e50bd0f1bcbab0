"""Rates of products and copies are judged by the kind of GPU."""

import pytest
import torch

from hybrid_ft.finetune.doctor import arithmetic

H100 = "NVIDIA H100 80GB HBM3"


def test_rates_are_judged() -> None:
    assert not arithmetic.judged("rate", [7.0e14, 6.9e14], H100).red
    assert "GPU 1 is slower" in arithmetic.judged("rate", [7.0e14, 5.0e14], H100).said
    slow = arithmetic.judged("rate", [3.0e14, 3.0e14], H100)
    assert slow.red and "of 989 stated" in slow.said
    assert not arithmetic.judged("rate", [1.0e13], "NVIDIA T4").red


def test_copies_are_judged() -> None:
    sound = arithmetic.judged("copies", [2.9e12, 2.88e12], H100)
    assert not sound.red and sound.said == "2.90, 2.88 TB/s to and from memory"
    assert "GPU 0 is slower" in arithmetic.judged("copies", [2.0e12, 2.9e12], H100).said
    slow = arithmetic.judged("copies", [1.5e12], H100)
    assert slow.red and "1.50 TB/s to and from memory of 3.35 stated" in slow.said


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (H100, "H100 SXM"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 3090", None),
        ("NVIDIA RTX A6000", None),
        ("NVIDIA L40", None),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_a_board_is_judged_by_its_own_kind_alone(name: str, kind: str | None) -> None:
    found = arithmetic._kind(name)
    assert (found and found.name) == kind


def test_what_is_measured_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two figures from known times, with the work done on the processor."""
    done: list[torch.Tensor] = []

    def seconds(work, place):
        done.append(work())
        return 0.5

    monkeypatch.setattr(arithmetic, "_seconds", seconds)
    monkeypatch.setattr(arithmetic.torch, "device", lambda kind, number: "cpu")
    monkeypatch.setattr(arithmetic, "_SIDE", 64)
    monkeypatch.setattr(arithmetic, "_COPIED", 1000)
    assert arithmetic._multiplied(0) == 2 * 2 * 64**3 and done[0].shape == (64, 64)
    assert arithmetic._copied(0) == 2 * 2 * 1000 and not done[1].any()
