"""Pairs of identical answers through the trainer: there is nothing to learn, and that is said."""

import math

import pytest

from hybrid_ft.finetune.training.stuck_loss import StuckLoss


@pytest.mark.parametrize("alike", [True, False])
def test_identical_answers_through_the_trainer(make_trainer, make_pairs, alike):
    pairs = make_pairs(6)
    if alike:
        pairs = pairs.map(lambda pair: pair | {"rejected_ids": pair["chosen_ids"]})
    trainer = make_trainer(pairs, steps=4)
    said = []
    trainer.add_callback(StuckLoss(said.append, math.log(2)))
    trainer.train()
    assert len(said) == alike
