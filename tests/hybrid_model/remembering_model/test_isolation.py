"""A document's log-probabilities and gradients are the same alone, padded and packed in any order."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


@pytest.fixture(scope="module", params=TOLERANCE, ids=str)
def model(request, make_pair):
    heads = {"num_key_value_heads": 2, "linear_num_key_heads": 2}
    return make_pair(seed=3, dtype=request.param, **heads, **ROPE)[1]


def documents(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 61, (n,), generator=generator) for n in lengths]


def packed(rows):
    return {
        "input_ids": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
    }


def padded(rows, side, extra=0):
    width = max(map(len, rows)) + extra
    input_ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        input_ids[i, start : start + len(row)] = row
        mask[i, start : start + len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": mask}


def log_probs(model, batch):
    """Of every next token inside each document, in the order of the flat batch."""
    logits = model(**batch, use_cache=False).logits
    scores = logits.log_softmax(-1)[:, :-1].gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    if "attention_mask" in batch:
        return scores[(batch["attention_mask"][:, 1:] * batch["attention_mask"][:, :-1]).bool()]
    return scores[batch["position_ids"].diff() == 1]


def gradients(model, scores):
    """Of a sum that weighs every token differently."""
    model.zero_grad()
    (scores * torch.linspace(0.5, 1.5, len(scores))).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def alone(model, rows):
    return torch.cat([log_probs(model, packed([row])) for row in rows])


@pytest.fixture
def assert_same(model, relative, assert_gradients):
    """The batch's documents against the same documents, each in a call of its own."""

    def check(batch, rows):
        tolerance = TOLERANCE[model.dtype]
        expected = alone(model, rows)
        got = log_probs(model, batch)
        assert relative(got, expected) < tolerance
        assert_gradients(gradients(model, got), gradients(model, expected), tolerance)

    return check


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(assert_same, side):
    rows = documents([70, 1, 3, 64, 130])
    assert_same(padded(rows, side, extra=5), rows)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [1, 0, 4, 3, 2]])
def test_packing_order_changes_nothing(assert_same, order):
    rows = documents([70, 1, 3, 64, 130])
    rows = [rows[i] for i in order]
    assert_same(packed(rows), rows)


def test_segments_of_one_and_of_a_thousand(assert_same):
    rows = documents([1, 1000, 1, 2, 1000, 1])
    assert_same(packed(rows), rows)


@pytest.mark.parametrize("model", [torch.float64], indirect=True)
@given(
    lengths=st.lists(st.integers(1, 140), min_size=2, max_size=6).filter(lambda lengths: max(lengths) > 1),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=7, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_random_packings(assert_same, lengths, seed):
    rows = documents(lengths, seed)
    assert_same(packed(rows), rows)


def test_trl_collator_row(model, relative):
    """All four of the boundaries that TRL's collator sends, beside keys the model has no use for."""
    rows = documents([9, 30, 1, 17])
    batch = packed(rows)
    lengths = torch.tensor([len(row) for row in rows])
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    got = model(
        **batch,
        cu_seq_lens_q=cu_seqlens,
        cu_seq_lens_k=cu_seqlens,
        max_length_q=30,
        max_length_k=30,
        seq_idx=torch.repeat_interleave(torch.arange(4), lengths)[None].int(),
        use_cache=False,
    ).logits
    assert torch.equal(got, model(**batch, use_cache=False).logits)
    single = torch.cat([model(row[None], use_cache=False).logits[0] for row in rows])
    assert relative(got[0], single) < TOLERANCE[model.dtype]


def test_padding_comes_out_as_zeros(model):
    rows = documents([3, 6])
    batch = padded(rows, "left")
    hidden = model.model(**batch, use_cache=False).last_hidden_state
    assert torch.equal(hidden[0, :3], torch.zeros_like(hidden[0, :3]))
    assert bool((hidden[0, 3:] != 0).any())
