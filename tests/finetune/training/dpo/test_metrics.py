"""Sums over pairs and the two warnings."""

from typing import Any

import pytest
import torch

from hybrid_ft.finetune.training.dpo.metrics import PairSums, Watch


def batch(answers: list[tuple[int, int]], reference: list[tuple[float, float]]) -> dict[str, Any]:
    """TRL's columns for answers of these lengths after a prompt of one token."""
    lengths = [chosen for chosen, _ in answers] + [rejected for _, rejected in answers]
    mask = torch.zeros(len(lengths), 1 + max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, 1 : 1 + length] = 1
    chosen, rejected = (torch.tensor(side) for side in zip(*reference, strict=True))
    return {"completion_mask": mask, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}


def log_probs(rows: dict[str, Any], totals: list[float]) -> torch.Tensor:
    """Spread each row's total evenly over its answer's tokens."""
    mask = rows["completion_mask"][:, 1:]
    return mask * (torch.tensor(totals)[:, None] / mask.sum(1, keepdim=True))


def test_means_are_over_pairs_and_over_tokens() -> None:
    sums = PairSums(beta=0.5, per_token=False)
    first = batch([(4, 2)], [(-8.0, -4.0)])
    sums.add(log_probs(first, [-6.0, -5.0]), first)
    second = batch([(1, 3), (2, 2)], [(-1.0, -3.0), (-2.0, -2.0)])
    sums.add(log_probs(second, [-2.0, -2.0, -6.0, -2.0]), second)
    means = sums.take()
    # gains: +2 and -1, -1 and -3, 0 and 0
    assert means["pairs"] == 3
    assert means["rewards/margins"] == pytest.approx(0.5 * (3 + 2 + 0) / 3)
    assert means["rewards/accuracies"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert means["logps/chosen"] == pytest.approx(-10 / 3) and means["logps/rejected"] == pytest.approx(-13 / 3)
    assert means["chosen_gain"] == pytest.approx(1 / 7) and means["rejected_gain"] == pytest.approx(-4 / 7)
    assert (means["chosen_tokens"], means["rejected_tokens"]) == (7 / 3, 7 / 3)
    assert (means["longer"], means["shorter"]) == (1 / 3, 1 / 3)
    assert (means["accuracy_longer"], means["accuracy_shorter"]) == (1.0, 1.0)
    assert sums.take() == {}


def test_rewards_are_per_token_where_the_loss_is() -> None:
    sums = PairSums(beta=5.0, per_token=True)
    rows = batch([(4, 1)], [(-8.0, -4.0)])
    sums.add(log_probs(rows, [-6.0, -3.0]), rows)
    means = sums.take()
    assert means["rewards/margins"] == pytest.approx(5 * (2 / 4 - 1 / 1))
    assert means["rewards/accuracies"] == 0.0


def measured(pairs: int = 128, **changed: float) -> dict[str, float]:
    fine = {
        "pairs": pairs,
        "chosen_tokens": 100.0,
        "rejected_tokens": 100.0,
        "chosen_gain": 0.0,
        "rejected_gain": -0.2,
        "longer": 0.5,
        "shorter": 0.5,
        "accuracy_longer": 0.9,
        "accuracy_shorter": 0.7,
    }
    return fine | changed


def said(watch: Watch, *steps: dict[str, float]) -> list[str]:
    return [text for step in steps for text in watch.see(step)]


def test_nothing_is_said_while_all_is_well() -> None:
    assert said(Watch(), *[measured() for _ in range(10)]) == []


def test_both_answers_falling_is_said_once() -> None:
    watch = Watch()
    falling = measured(chosen_gain=-0.15, rejected_gain=-0.4)
    assert said(watch, falling) == []
    (text,) = said(watch, falling, falling, falling)
    assert text.startswith(
        "warning: chosen answers are losing probability together with the rejected ones (-0.15 and -0.40"
    )
    assert said(Watch(), *[measured(chosen_gain=-0.15, rejected_gain=0.1)] * 4) == []


def test_old_pairs_are_forgotten() -> None:
    watch = Watch()
    assert said(watch, *[measured(chosen_gain=1.0) for _ in range(20)]) == []
    assert len(said(watch, *[measured(chosen_gain=-0.2) for _ in range(2)])) == 1


def test_length_alone_winning_is_said() -> None:
    (text,) = said(Watch(), *[measured(accuracy_shorter=0.3)] * 4)
    assert text.startswith("warning: longer answers win for their length: right on 90% of the pairs whose chosen")
    assert "30% where it is the shorter" in text


def test_length_needs_enough_pairs_of_both_kinds() -> None:
    few = measured(shorter=0.05, longer=0.95, accuracy_shorter=0.0)
    assert said(Watch(), *[few] * 4) == []
    without = measured(shorter=0.0, longer=1.0)
    del without["accuracy_shorter"]
    assert said(Watch(), *[without] * 4) == []
