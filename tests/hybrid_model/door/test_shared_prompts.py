"""Rows that share a prompt, against the same rows one by one through transformers' own model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hybrid_ft.hybrid_model.door.shared_prompts import open_shared_door

Rows = list[list[int]]


@dataclass
class Batch:
    """Rows of prompt + answer; ``weights`` make one number of all the answers' log-probabilities."""

    rows: Rows
    cuts: list[int]
    owners: list[int]
    weights: list[torch.Tensor]

    def tensors(self, left: bool = False) -> dict[str, torch.Tensor]:
        longest = max(len(row) for row in self.rows)
        ids = torch.zeros(len(self.rows), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for r, row in enumerate(self.rows):
            place = slice(longest - len(row), None) if left else slice(0, len(row))
            ids[r, place], mask[r, place] = torch.tensor(row), 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "prompt_lengths": torch.tensor(self.cuts),
            "prompt_rows": torch.tensor(self.owners),
        }

    def predicted(self, r: int) -> int:
        """First token of a row whose log-probability counts: an answer's first, but nothing predicts a row's first."""
        return max(self.cuts[r], 1)


def make_batch(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], seed: int = 0) -> Batch:
    """``answers[i]`` are the answers to ``prompts[i]``. Rows come answer by answer: all first
    answers, all second ones."""
    rows, cuts, owners, first = [], [], [], {}
    for n in range(max(len(some) for some in answers)):
        for i, prompt in enumerate(prompts):
            if n < len(answers[i]):
                owners.append(first.setdefault(i, len(rows)))
                cuts.append(len(prompt))
                rows.append([*prompt, *answers[i][n]])
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(len(row), generator=generator, dtype=torch.float64) for row in rows]
    return Batch(rows, cuts, owners, weights)


def random_batch(lengths: Sequence[tuple[int, Sequence[int]]], seed: int = 0) -> Batch:
    """(prompt length, lengths of its answers) for each prompt."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(n: int) -> list[int]:
        return torch.randint(1, 61, (n,), generator=generator).tolist()

    return make_batch([tokens(n) for n, _ in lengths], [[tokens(n) for n in some] for _, some in lengths], seed)


def one_by_one(plain: torch.nn.Module, batch: Batch) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Log-probabilities of every row's answer tokens and all gradients of their weighted sum, each row alone."""
    plain.zero_grad()
    found = []
    for r, row in enumerate(batch.rows):
        if len(row) <= batch.predicted(r):
            found.append(torch.empty(0))
            continue
        logits = plain(torch.tensor([row]), use_cache=False).logits[0, :-1]
        logps = F.log_softmax(logits, -1).gather(-1, torch.tensor(row[1:])[:, None]).squeeze(-1)
        logps = logps[batch.predicted(r) - 1 :]
        (logps * batch.weights[r][-len(logps) :].to(logps)).sum().backward()
        found.append(logps.detach())
    return found, {name: p.grad.clone() for name, p in plain.named_parameters()}


def together(
    ours: torch.nn.Module, batch: Batch, left: bool = False
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The same from one call with shared prompts."""
    ours.zero_grad()
    inputs = batch.tensors(left)
    logps = F.log_softmax(ours(**inputs, use_cache=False).logits, -1)
    found, total = [], logps.new_zeros(())
    for r, row in enumerate(batch.rows):
        start = inputs["input_ids"].shape[1] - len(row) if left else 0
        places = torch.arange(batch.predicted(r), len(row))
        mine = logps[r, start + places - 1, torch.tensor(row)[places]]
        total = total + (mine * batch.weights[r][len(row) - len(mine) :].to(mine)).sum()
        found.append(mine.detach())
    total.backward()
    return found, {name: p.grad.clone() for name, p in ours.named_parameters()}


def assert_same(pair: tuple, batch: Batch, relative: Callable, left: bool = False) -> None:
    """In float64 nothing but rounding lies between a fork and its rows; in float32 no more than in transformers."""
    plain, ours = pair
    theirs, their_grads = one_by_one(plain, batch)
    found, grads = together(ours, batch, left)
    assert relative(torch.cat(found), torch.cat(theirs)) < 1e-5
    try:
        ours.double()
        true, true_grads = one_by_one(ours, batch)
        exact, exact_grads = together(ours, batch, left)
    finally:
        ours.float()
    assert relative(torch.cat(exact), torch.cat(true)) < 1e-12
    for name, grad in true_grads.items():
        assert (exact_grads[name] - grad).norm() < 1e-11 * max(grad.norm(), 1e-3 * flat(true_grads).norm()), name
        apart = (grads[name] - their_grads[name]).norm()
        # a gradient of nothing but rounding (the query's of a row's first token) is compared with the others
        assert apart < 2e-4 * max(their_grads[name].norm(), 1e-3 * flat(their_grads).norm()), name
    ours_off, theirs_off = (relative(flat(some), flat(true_grads)) for some in (grads, their_grads))
    assert ours_off < max(2 * theirs_off, 1e-5)


def flat(grads: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([grads[name].double().flatten() for name in sorted(grads)])


CASES = {
    "one pair": [(9, [5, 7])],
    "prompt of 1": [(1, [4, 3]), (1, [1, 1])],
    "empty prompt": [(0, [5, 4]), (3, [2, 6])],
    "all empty": [(0, [5, 4]), (0, [2, 6])],
    "answers of 1": [(12, [1, 1]), (70, [1, 9])],
    "many answers to one prompt": [(40, [1, 2, 3, 5, 8, 13, 64, 65])],
    "single answer among pairs": [(20, [6]), (10, [4, 4]), (5, [3])],
    "empty answer": [(20, [0, 6])],
    "chunk edges": [(64, [64, 65]), (63, [1, 64]), (128, [63, 2])],
    "12 pairs": [(1 + 7 * i % 40, [1 + 5 * i % 13, 1 + 3 * i % 17]) for i in range(12)],
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_rows_alone(case: str, make_pair: Callable, relative: Callable) -> None:
    assert_same(make_pair(3), random_batch(CASES[case]), relative)


def test_long_prompt(make_pair: Callable, relative: Callable) -> None:
    assert_same(make_pair(5), random_batch([(1000, [3, 90]), (333, [33, 1])]), relative)


@pytest.mark.parametrize(
    "fields",
    [
        {"linear_num_value_heads": 4},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "num_key_value_heads": 2},
        {"tie_word_embeddings": True, "layer_types": ["full_attention", "full_attention", "linear_attention"]},
    ],
    ids=["grouped values", "rope", "tied"],
)
def test_other_configs(fields: dict, make_pair: Callable, relative: Callable) -> None:
    assert_same(make_pair(7, **fields), random_batch([(11, [5, 70]), (80, [9, 2]), (0, [3, 3])]), relative)


def test_left_padding(make_pair: Callable, relative: Callable) -> None:
    assert_same(make_pair(1), random_batch([(11, [5, 7]), (2, [9, 2]), (0, [3, 4])]), relative, left=True)


def test_answer_that_begins_the_other(make_pair: Callable, relative: Callable) -> None:
    batch = make_batch([[5, 6, 7], [8]], [[[9, 10], [9, 10, 11, 12]], [[3], [3, 3]]])
    assert_same(make_pair(2), batch, relative)


def test_an_answer_of_several_rows_is_computed_once(make_pair: Callable, relative: Callable) -> None:
    """All pairs of three answers: a prompt and three answers, whatever the rows weigh."""
    best, middle, worst = [9, 10, 4], [9, 10], [7] * 5
    batch = make_batch([[5, 6, 7, 1], [8, 2]], [[best, best, middle, middle, worst, worst], [[3], [3]]])
    batch.rows += [[4, 4]] * 2
    batch.cuts += [0, 0]
    batch.owners += [len(batch.rows) - 2] * 2
    batch.weights += [torch.tensor([0.3, 0.7], dtype=torch.float64)] * 2
    inputs = batch.tensors()
    door = open_shared_door(
        inputs["input_ids"], inputs["prompt_lengths"], inputs["prompt_rows"], inputs["attention_mask"]
    )
    assert sorted(door.layout.lengths) == [1, 2, 2, 2, 3, 4, 5]
    assert_same(make_pair(2), batch, relative)


@settings(max_examples=5)
@given(
    lengths=st.lists(
        st.tuples(st.integers(0, 90), st.lists(st.integers(1, 40), min_size=1, max_size=4)), max_size=5, min_size=1
    ),
    seed=st.integers(0, 2**16),
)
def test_any_groups(lengths: list, seed: int, make_pair: Callable, relative: Callable) -> None:
    batch = random_batch(lengths, seed)
    if any(len(row) > batch.predicted(r) for r, row in enumerate(batch.rows)):
        assert_same(make_pair(4), batch, relative)


def test_order_of_rows_changes_no_bit(make_pair: Callable) -> None:
    """Exchanging chosen and rejected exchanges their numbers, exactly; so does any other order of the rows."""
    _, ours = make_pair(6)
    batch = random_batch([(30, [12, 12]), (30, [12, 3]), (4, [65, 64]), (0, [9, 2]), (7, [5, 5])])
    found, grads = together(ours, batch)
    pairs = len(batch.rows) // 2
    swapped = [*range(pairs, 2 * pairs), *range(pairs)]
    for order in (swapped, torch.randperm(2 * pairs, generator=torch.Generator().manual_seed(0)).tolist()):
        place = {old: new for new, old in enumerate(order)}
        other = Batch(
            [batch.rows[r] for r in order],
            [batch.cuts[r] for r in order],
            [place[batch.owners[r]] for r in order],
            [batch.weights[r] for r in order],
        )
        again, again_grads = together(ours, other)
        for new, old in enumerate(order):
            assert torch.equal(again[new], found[old])
        # the head sees the rows in their own order, and its gradient is a sum over them
        exact = [name for name in grads if not name.startswith("lm_head")]
        assert all(torch.equal(again_grads[name], grads[name]) for name in exact)


def test_prompt_is_computed_once(make_pair: Callable) -> None:
    batch = random_batch([(50, [3, 4]), (20, [5, 6, 7])]).tensors()
    door = open_shared_door(batch["input_ids"], batch["prompt_lengths"], batch["prompt_rows"], batch["attention_mask"])
    assert len(door.layout.positions) == 50 + 3 + 4 + 20 + 5 + 6 + 7
    assert sorted(door.layout.lengths) == [3, 4, 5, 6, 7, 20, 50]


def test_every_place_is_handed_back(make_pair: Callable, relative: Callable) -> None:
    """Prompt positions too, in every row that has them; zeros at the padding."""
    plain, ours = make_pair(8)
    batch = random_batch([(13, [3, 9]), (0, [5, 1])])
    inputs = batch.tensors()
    hidden = ours.model(**inputs).last_hidden_state
    for r, row in enumerate(batch.rows):
        alone = plain.model(torch.tensor([row])).last_hidden_state[0]
        assert relative(hidden[r, : len(row)], alone) < 1e-5
        assert not hidden[r, len(row) :].any()


def test_keep_hands_back_these_places_alone(make_pair: Callable) -> None:
    _, ours = make_pair(9)
    inputs = random_batch([(13, [3, 9]), (0, [5, 1]), (6, [2, 2])]).tensors()
    keep = inputs["attention_mask"].bool() & (torch.rand(6, 22, generator=torch.Generator().manual_seed(1)) < 0.4)
    whole = ours.model(**inputs).last_hidden_state
    assert torch.equal(ours.model(**inputs, keep_positions=keep).last_hidden_state, whole[keep][None])
    plain_rows = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    whole = ours.model(**plain_rows).last_hidden_state
    assert torch.equal(
        ours.model(**plain_rows, keep_positions=keep, use_cache=False).last_hidden_state, whole[keep][None]
    )


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("prompt_lengths", [4, 4, 5], "row 2 is to share the prompt of row 0"),
        ("prompt_lengths", [4, 4, 99], "row 2 is 99; the row has"),
        ("prompt_lengths", [4, 4], "with 3 rows it must be"),
        ("prompt_rows", [0, 1, 3], "row 2 is 3; there are 3 rows"),
        ("prompt_rows", [0, 1, 1], "row 2 is to share the prompt of row 1"),
    ],
)
def test_wrong_columns_are_refused(column: str, value: list[int], said: str, make_pair: Callable) -> None:
    _, ours = make_pair(0)
    inputs = make_batch([[1, 2, 3, 4], [9, 8, 7, 6]], [[[5, 5], [6, 6]], [[7, 7]]]).tensors()
    assert inputs["prompt_rows"].tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match=said):
        ours(**inputs | {column: torch.tensor(value)})


def test_keep_at_padding_is_refused(make_pair: Callable) -> None:
    _, ours = make_pair(0)
    inputs = random_batch([(3, [1, 2])]).tensors()
    with pytest.raises(ValueError, match="padding"):
        ours.model(**inputs, keep_positions=torch.ones(2, 5, dtype=torch.bool))
