"""A run that learns nothing is told so once; a healthy one never."""

import math
from types import SimpleNamespace

import pytest

from hybrid_ft.finetune.training.stuck_loss import StuckLoss

LN2 = math.log(2)


def run(losses, first=None, warmup=0, steps=None, main=True, logged_every=1):
    """What is said while these losses are logged, and at the end, each with its step."""
    said = []
    state = SimpleNamespace(global_step=0, max_steps=steps or len(losses) * logged_every, is_world_process_zero=main)
    args = SimpleNamespace(learning_rate=1e-9, warmup_steps=warmup, get_warmup_steps=lambda steps: warmup)
    watch = StuckLoss(lambda text: said.append((state.global_step, text)), first)
    for loss in losses:
        state.global_step += logged_every
        watch.on_log(args, state, None, logs={"loss": loss})
        watch.on_log(args, state, None, logs={"eval_loss": 0.5})
    watch.on_train_end(args, state, None)
    return said


def test_twenty_zero_losses_in_a_row_are_said_once_and_at_once():
    assert run([0.0] * 50) == [
        (
            20,
            (
                "no learning signal: the loss has been exactly 0 for 20 logged steps; every trained token is already certain, "
                "or none is trained: look at the rows, and at which of their tokens are trained, with hybrid-ft data RECIPE"
            ),
        )
    ]


def test_twenty_losses_of_equal_models_are_said_with_the_learning_rate():
    assert run([LN2 + 5e-7] * 30, first=LN2) == [
        (
            20,
            (
                "no learning signal: the loss has been 0.693147 for 20 logged steps, which is that of a model equal to its "
                "reference; look whether chosen and rejected are alike, and whether train.learning_rate (1e-09) is large enough"
            ),
        )
    ]


@pytest.mark.parametrize(
    ("losses", "first"),
    [
        ([0.0] * 19 + [1e-9] + [0.0] * 19, None),
        ([1e-12] * 40, None),
        ([LN2] * 40, None),
        ([0.0] * 40, LN2),
        ([LN2] * 19 + [LN2 - 2e-6] + [LN2] * 19, LN2),
        ([LN2, 0.69, 0.68], LN2),
        ([LN2], LN2),
        ([1.0, 0.0, 0.0], None),
    ],
)
def test_nothing_is_said_of_a_healthy_run(losses, first):
    assert run(losses, first) == []


@pytest.mark.parametrize(("losses", "first"), [([0.0], None), ([0.0] * 19, None), ([LN2, LN2], LN2)])
def test_a_shorter_run_is_told_at_its_end(losses, first):
    [(step, text)] = run(losses, first)
    assert step == len(losses)
    assert "in every logged step;" in text or "in every logged step," in text


def test_warm_up_does_not_count():
    assert run([LN2] * 24, LN2, warmup=5, steps=100) == []
    assert [step for step, _ in run([LN2] * 25, LN2, warmup=5, steps=100)] == [25]
    # with a learning rate of almost nothing the first steps may show nothing
    assert run([LN2] * 5 + [0.69] * 5, LN2, warmup=5) == []
    [(_, text)] = run([0.7] * 2 + [LN2] * 5, LN2, warmup=2)
    assert "in every logged step after warm-up" in text


def test_a_run_that_was_stopped_is_not_judged():
    assert run([0.0] * 5, steps=10) == []


def test_only_one_process_speaks():
    assert run([0.0] * 50, main=False) == []
