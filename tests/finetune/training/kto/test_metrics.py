"""Measures of judged answers, by hand from each answer's numbers."""

from typing import Any

import pytest
import torch

from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.training.kto.metrics import AnswerSums, Watch, measures

# gain of each answer against the reference, whether it is good, its tokens
ANSWERS = [(2.0, True, 3), (-1.0, True, 2), (0.5, True, 4), (1.0, False, 1), (-2.0, False, 2)]
BETA, KL = 0.1, 0.5


def added(sums: AnswerSums, answers: list[Any], kl: float = KL) -> AnswerSums:
    gains = torch.tensor([gain for gain, _, _ in answers], dtype=torch.float64)
    mask = torch.zeros(len(answers), 6)
    for row, (_, _, tokens) in enumerate(answers):
        mask[row, 1 : 1 + tokens] = 1
    log_probs = torch.zeros(len(answers), 5, dtype=torch.float64)
    log_probs[:, 0] = -7.0
    batch = {
        "label": torch.tensor([good for _, good, _ in answers]),
        "ref_logps": -7.0 - gains,
        "completion_mask": mask,
    }
    sums.add(log_probs, batch, kl)
    return sums


def test_means_over_good_and_bad_answers() -> None:
    found = added(AnswerSums(BETA), ANSWERS).take()
    assert (found["rows"], found["rows/chosen"], found["rows/rejected"]) == (5, 3, 2)
    assert found["kl"] == pytest.approx(KL)
    assert found["rewards/chosen"] == pytest.approx(BETA * 1.5 / 3) and found["rewards/rejected"] == pytest.approx(
        -BETA / 2
    )
    assert found["rewards/margins"] == pytest.approx(BETA * (1.5 / 3 + 1 / 2))
    assert found["logps/chosen"] == pytest.approx(-7) and found["chosen_tokens"] == pytest.approx(3)
    assert found["chosen_gain"] == pytest.approx(1.5 / 9) and found["rejected_gain"] == pytest.approx(-1 / 3)
    # good: 2 gained more than the KL term, 0.5 as much as it, -1 less; bad: 1 more, -2 less
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5 + 0 + 1) / 5)


def test_batches_add_up_to_the_whole_and_are_forgotten() -> None:
    sums = AnswerSums(BETA)
    for one in ANSWERS:
        added(sums, [one])
    whole = added(AnswerSums(BETA), ANSWERS).take()
    assert sums.take() == pytest.approx(whole)
    assert sums.take() == {}


def test_a_side_that_is_not_there_has_no_measures() -> None:
    found = added(AnswerSums(BETA), ANSWERS[:3]).take()
    assert "rewards/rejected" not in found and "rewards/margins" not in found and found["rows/rejected"] == 0


def test_processes_are_summed_not_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes with the answers of one each, as of one with both."""
    both = added(AnswerSums(BETA), [ANSWERS[0], ANSWERS[4]]).take()
    other = added(AnswerSums(BETA), [ANSWERS[4]]).sums
    assert other is not None
    stub = Processes()
    monkeypatch.setattr(stub, "sum", lambda values: [a + b for a, b in zip(values, other.tolist(), strict=True)])
    assert added(AnswerSums(BETA), [ANSWERS[0]]).take(stub) == pytest.approx(both)


def seen(watch: Watch, gain: float, rows: int = 64) -> list[str]:
    return watch.see({"rows/chosen": rows, "chosen_tokens": 10.0, "chosen_gain": gain})


def test_good_answers_that_lose_probability_are_said_once_and_late_enough() -> None:
    watch = Watch()
    assert [seen(watch, -0.2) for _ in range(3)] == [[]] * 3  # 192 of them
    (text,) = seen(watch, -0.2)
    assert "good answers are losing probability (-0.20 nats per token" in text
    assert seen(watch, -0.9) == []


def test_the_last_answers_alone_count() -> None:
    """Over all of them nothing would have been lost."""
    watch = Watch()
    said = [seen(watch, gain) for gain in (-0.15, *[0.1] * 8, -0.2, -0.2, -0.2)]
    assert said[:-1] == [[]] * 11 and "(-0.12 nats" in said[-1][0]


def test_the_live_line_leaves_out_what_is_not_there() -> None:
    values = {"loss": 0.5, "kl": 0.0, "accuracy": 0.5, "rewards/chosen": -0.0001}
    assert measures(values) == "loss 0.5000  good +0.000  kl 0.000  accuracy 50%"
    assert "bad -0.250" in measures(
        {f"eval_{name}": value for name, value in values.items()} | {"eval_rewards/rejected": -0.25}, "eval_"
    )
