"""Answers are laid out where no GPU waits, and what the model computes is what it computes of the rows."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hybrid_ft.finetune.runs.team import Team
from hybrid_ft.finetune.training.answer_log_probs import answer_log_probs
from hybrid_ft.finetune.training.dpo.batches import laid_out_pairs
from hybrid_ft.finetune.training.own_tokens import own_answers
from hybrid_ft.hybrid_model.door import spread
from hybrid_ft.hybrid_model.door.batch import read_batch

PAIRS = [
    {"prompt_ids": [5, 6, 4], "chosen_ids": [7], "rejected_ids": [8, 9]},
    {"prompt_ids": [], "chosen_ids": [7, 3], "rejected_ids": [8]},
    {"prompt_ids": [5, 6, 4], "chosen_ids": [4, 4], "rejected_ids": [3]},
]
ROWS = [pair["prompt_ids"] + pair[name] for name in ("chosen_ids", "rejected_ids") for pair in PAIRS]
ANSWERS = [len(pair[name]) for name in ("chosen_ids", "rejected_ids") for pair in PAIRS]


class Repeats:
    """A model in whose stead the token before and the token itself are the log-probability: 100 * before + token."""

    def __init__(self):
        self.tokens = 0

    def __call__(self, *, input_ids, layout, keep_positions, labels, **rest):
        assert rest == {"fused_lm_head": True}
        self.tokens = input_ids.shape[1]
        layout = read_batch(input_ids, ["linear_attention"], layout=layout).layout
        assert len(layout.own_positions) == self.tokens
        kept = input_ids[0].index_select(0, keep_positions)[:-1]  # what a head makes of what it is given
        self.log_probs = (100 * kept + labels[0, 1:]).double()[None]
        return self


@pytest.mark.parametrize(("forks", "tokens"), [(True, 3 + 6 + 3), (False, 4 * 3 + 6 + 3)])
def test_each_token_of_an_answer_is_met_with_the_one_before(forks, tokens):
    batch = laid_out_pairs(PAIRS, 1, forks)
    model = Repeats()
    found = answer_log_probs(model, batch["answers"], batch["input_ids"], fused_lm_head=True).log_probs
    assert model.tokens == tokens
    expected = torch.zeros(found.shape, dtype=torch.float64)
    for row, (ids, count) in enumerate(zip(ROWS, ANSWERS, strict=True)):
        for place in range(max(1, len(ids) - count), len(ids)):
            expected[row, place - 1] = 100 * ids[place - 1] + ids[place]
    assert torch.equal(found, expected)


def test_no_value_is_asked_for():
    """Fake tensors have none."""
    batch = laid_out_pairs(PAIRS, 1, True)
    with FakeTensorMode() as mode:
        ids = mode.from_tensor(batch["input_ids"])
        answers = batch["answers"]
        for name in ("input_ids", "before", "targets", "places"):
            object.__setattr__(answers, name, mode.from_tensor(getattr(answers, name)))
        found = answer_log_probs(Repeats(), answers, ids, attention_mask=None, fused_lm_head=True)
        assert found.log_probs.shape == (6, 4)


@pytest.mark.parametrize("size", [2, 4, 16])
@pytest.mark.parametrize("forks", [True, False])
def test_the_answers_of_all_processes_are_those_of_one(size, forks, monkeypatch):
    monkeypatch.setattr(spread.dist, "all_reduce", lambda *args, **kwargs: None)
    batch = laid_out_pairs(PAIRS, 1, forks)
    of_one = answer_log_probs(Repeats(), batch["answers"], batch["input_ids"], fused_lm_head=True).log_probs
    parts, tokens = [], 0
    for place in range(size):
        model = Repeats()
        answers = own_answers(batch, Team(size, place))["answers"]
        parts.append(answer_log_probs(model, answers, batch["input_ids"], fused_lm_head=True).log_probs)
        tokens += model.tokens
    assert torch.equal(sum(parts), of_one)
    assert tokens == max(batch["answers"].input_ids.shape[1], size)
