"""Masks of pairs mean what they mean to transformers' attention, or are refused."""

import pytest
import torch
from transformers import DynamicCache

from hybrid_ft.hybrid_model.door.masks import documents_of


def causal_inside(documents):
    """bool [B, 1, T, T] from the number of each token's document, 0 at padding."""
    numbers = torch.tensor(documents)
    same = (numbers[:, :, None] == numbers[:, None, :]) & (numbers[:, None, :] > 0)
    return (same & torch.ones(numbers.shape[1], numbers.shape[1], dtype=torch.bool).tril())[:, None]


DOCUMENTS = [[1, 1, 1, 2, 2, 3], [0, 0, 1, 1, 1, 1], [1, 1, 2, 2, 0, 0]]


@pytest.mark.parametrize("kind", ["bool", "added", "added, padding sees everything"])
def test_documents_and_padding_are_found(kind):
    mask = causal_inside(DOCUMENTS)
    if kind != "bool":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        if "everything" in kind:
            # as transformers does for rows that a kernel may not leave empty
            mask[1, 0, :2] = 0
    real, number = documents_of(mask, (3, 6))
    assert torch.equal(real, torch.tensor(DOCUMENTS) > 0)
    for row, documents in enumerate(DOCUMENTS):
        starts = [documents.index(d) for d in documents if d]
        assert number[row][real[row]].tolist() == starts


def test_each_document_is_as_alone(make_pair, relative):
    model = make_pair(seed=3, dtype=torch.float64)[1]
    tokens = torch.randint(1, 61, (3, 6), generator=torch.Generator().manual_seed(0))
    got = model(tokens, attention_mask=causal_inside(DOCUMENTS)).logits
    for row, documents in enumerate(DOCUMENTS):
        for document in set(documents) - {0}:
            places = torch.tensor(documents) == document
            assert relative(got[row, places], model(tokens[row, places][None]).logits[0]) < 1e-12


def test_rows_of_one_document_are_those_of_transformers(make_pair, in_float64, relative):
    mask = causal_inside([[1] * 6, [0, 0, 1, 1, 1, 1]])
    tokens = torch.randint(1, 61, (2, 6), generator=torch.Generator().manual_seed(0))
    plain, ours = make_pair(seed=3, dtype=torch.float64)
    with in_float64():
        expected = plain(tokens, attention_mask=mask[:, 0].diagonal(dim1=1, dim2=2).long(), use_cache=False).logits
        got = ours(tokens, attention_mask=mask).logits
    real = mask[:, 0].diagonal(dim1=1, dim2=2)
    assert relative(got[real], expected[real]) < 1e-12


def test_other_masks_are_refused(make_pair):
    full = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    window = full.tril() & full.triu(-1)
    prefix = full.tril()
    prefix[0, 0, 0, 1] = True
    hole = full.tril().clone()
    hole[0, 0, 3, 1] = False
    for mask, at in ((window, "query 2 and key 1"), (hole, "query 3 and key 1"), (prefix, "query 1 and key 0")):
        with pytest.raises(ValueError, match=f"{at} break causal attention inside documents"):
            documents_of(mask, (1, 4))
    for numbers in (full.tril().float(), full.tril().long()):
        with pytest.raises(ValueError, match="attention_mask holds 1; a mask of pairs must be bool, or 0 where"):
            documents_of(numbers, (1, 4))
    with pytest.raises(ValueError, match=r"attention_mask is \(1, 4, 4, 4\); a mask of pairs must be \(1, 1, 4, 4\)"):
        documents_of(full.expand(1, 4, 4, 4), (1, 4))
    model = make_pair()[1]
    tokens = torch.arange(1, 5)[None]
    cache = model(tokens, past_key_values=DynamicCache()).past_key_values
    with pytest.raises(ValueError, match="with a filled cache attention_mask must be the 2-D mask"):
        model(tokens, past_key_values=cache, attention_mask=torch.ones(1, 1, 4, 8, dtype=torch.bool))
