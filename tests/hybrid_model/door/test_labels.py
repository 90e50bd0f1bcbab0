"""Loss and gradients of documents alone, padded on either side and packed."""

import pytest
import torch

from hybrid_ft.hybrid_model.door.labels import predictable


@pytest.fixture(scope="module")
def model(make_pair):
    return make_pair(seed=3, dtype=torch.float64)[1]


def documents():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 61, (length,), generator=generator) for length in (20, 7, 1)]


def alone(documents):
    """Each in a call of its own; the sum of the losses of all predictions is compared."""
    return [{"input_ids": tokens[None]} for tokens in documents]


def padded(documents, side):
    width = max(map(len, documents)) + 2
    input_ids = torch.zeros(len(documents), width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, tokens in enumerate(documents):
        places = slice(width - len(tokens), None) if side == "left" else slice(len(tokens))
        input_ids[row, places], mask[row, places] = tokens, 1
    return [{"input_ids": input_ids, "attention_mask": mask}]


def packed(documents, by):
    input_ids = torch.cat(documents)[None]
    lengths = torch.tensor([len(tokens) for tokens in documents])
    if by == "position_ids":
        bound = torch.cat([torch.arange(n) for n in lengths])[None]
    elif by == "seq_idx":
        bound = torch.arange(len(lengths)).repeat_interleave(lengths)[None]
    else:
        bound = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    return [{"input_ids": input_ids, by: bound}]


FORMS = {
    "padded left": lambda rows: padded(rows, "left"),
    "padded right": lambda rows: padded(rows, "right"),
    "packed by position_ids": lambda rows: packed(rows, "position_ids"),
    "packed by seq_idx": lambda rows: packed(rows, "seq_idx"),
    "packed by cu_seq_lens_q": lambda rows: packed(rows, "cu_seq_lens_q"),
}


def loss_and_gradients(model, batches, count):
    model.zero_grad()
    total = 0.0
    for batch in batches:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        labels = batch["input_ids"].masked_fill(mask == 0, -100)
        loss = model(**batch, labels=labels, num_items_in_batch=count, use_cache=False).loss
        loss.backward()
        total += float(loss.detach())
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_are_those_of_the_documents_alone(model, assert_gradients, form):
    rows = documents()
    count = sum(len(row) - 1 for row in rows)
    # a document of one token has no prediction at all
    expected, gradients = loss_and_gradients(model, alone([row for row in rows if len(row) > 1]), count)
    got, own = loss_and_gradients(model, FORMS[form](rows), count)
    assert got == pytest.approx(expected, rel=1e-12)
    assert_gradients(own, gradients, 1e-11)


def test_the_mean_is_over_the_predictions_alone(model):
    """Without a count, as in a call by hand; one padded row, beside itself alone."""
    row = documents()[:1]
    expected = model(**alone(row)[0], labels=alone(row)[0]["input_ids"]).loss.detach()
    for side in ("left", "right"):
        batch = padded(row, side)[0]
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        assert float(model(**batch, labels=labels).loss.detach()) == pytest.approx(float(expected), rel=1e-12)


def test_labels_given_are_left_as_they_are():
    labels = torch.tensor([[5, 6, 7, 8]])
    mask = torch.tensor([[0, 1, 1, 0]])
    assert predictable(labels, mask).tolist() == [[5, -100, 7, 8]]
    assert labels.tolist() == [[5, 6, 7, 8]]


def test_a_mask_that_is_wider_by_a_cache_is_read_from_its_end():
    labels = torch.tensor([[5, 6, 7, 8]])
    assert predictable(labels, torch.tensor([[1, 1, 0, 1, 1, 1]])).tolist() == [[5, -100, 7, 8]]
