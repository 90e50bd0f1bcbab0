"""Packs bring their layout, so that the model asks a GPU for nothing at its door."""

from functools import partial

import pytest
import torch
from datasets import Dataset
from torch._subclasses.fake_tensor import FakeTensorMode
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from hybrid_ft.finetune.training.packs import collate_with_rows, packs_dataset
from hybrid_ft.hybrid_model.door.batch import read_batch
from hybrid_ft.hybrid_model.door.layout import SequenceLayout

LENGTHS = [3, 1, 5, 4]
ROWS = Dataset.from_dict({"input_ids": [[7] * n for n in LENGTHS], "labels": [[7] * n for n in LENGTHS]})


def batch_of(packs, padding_free):
    collate = partial(collate_with_rows, DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free))
    packed = packs_dataset(ROWS, packs)
    return collate([packed[i] for i in range(len(packs))])


def test_the_layout_is_that_of_the_positions():
    batch = batch_of([[2, 0], [3, 1]], padding_free=True)
    batch.pop("rows")
    layout = batch["layout"]
    read = read_batch(batch["input_ids"], ["linear_attention"], position_ids=batch["position_ids"]).layout
    assert layout.lengths == read.lengths == (5, 3, 4, 1)
    assert torch.equal(layout.positions, read.positions) and torch.equal(layout.positions, batch["position_ids"][0])
    assert torch.equal(layout.cu_seqlens, read.cu_seqlens)


def test_padded_rows_have_none():
    assert "layout" not in batch_of([[2], [3]], padding_free=False)


def test_the_door_reads_no_value():
    """Fake tensors have none; the bounds in position_ids would be asked for."""
    batch = batch_of([[2, 0], [3, 1]], padding_free=True)
    with FakeTensorMode() as mode:
        ids, positions = (mode.from_tensor(batch[name]) for name in ("input_ids", "position_ids"))
        layout = read_batch(ids, ["linear_attention"], layout=batch["layout"]).layout
        assert isinstance(layout, SequenceLayout) and layout.lengths == (5, 3, 4, 1)
        with pytest.raises(Exception, match="local_scalar_dense|data-dependent|nonzero|aten"):
            read_batch(ids, ["linear_attention"], position_ids=positions)
