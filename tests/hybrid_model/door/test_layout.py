import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ft.hybrid_model.door.layout import build_layout, open_door, tree_layout


def rows_of(lengths, width, side):
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        start = width - length if side == "left" else 0
        mask[row, start : start + length] = 1
    return mask


def packed_positions(lengths):
    return torch.cat([torch.arange(n) for n in lengths])[None]


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    side=st.sampled_from(["left", "right"]),
    extra=st.integers(0, 3),
)
@settings(max_examples=60)
def test_padded_rows_come_back_where_they_were(lengths, side, extra):
    width = max(lengths) + extra or 1
    mask = rows_of(lengths, width, side)
    x = torch.randn(len(lengths), width, 2)
    door = open_door((len(lengths), width), attention_mask=mask)
    assert door.layout.lengths == tuple(lengths)
    assert door.one_per_row
    flat = door.flatten(x)
    expected = torch.cat([x[row][mask[row].bool()] for row in range(len(lengths))])
    assert torch.equal(flat, expected)
    assert torch.equal(door.unflatten(flat), x * mask[..., None])
    assert door.layout.positions.tolist() == [t for n in lengths for t in range(n)]
    assert door.layout.max_seqlen == max(lengths)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6), data=st.data())
@settings(max_examples=60)
def test_every_way_to_say_where_documents_begin_gives_the_same_layout(lengths, data):
    total = sum(lengths)
    position_ids = packed_positions(lengths)
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    seq_idx = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None].int()
    sources = {
        "position_ids": position_ids,
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "seq_idx": seq_idx,
    }
    chosen = data.draw(st.sets(st.sampled_from(sorted(sources)), min_size=1))
    door = open_door((1, total), **{name: sources[name] for name in chosen})
    assert door.layout.lengths == tuple(lengths)
    assert torch.equal(door.layout.cu_seqlens, cu_seqlens)
    assert torch.equal(door.layout.positions, position_ids[0])
    assert door.index is None
    assert door.one_per_row == (len(lengths) == 1)


def test_packed_rows_of_several_lengths_with_padding_on_both_sides():
    position_ids = torch.tensor([[1, 1, 0, 1, 2, 0, 1, 1], [0, 0, 1, 2, 3, 0, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0, 0]])
    door = open_door((2, 8), attention_mask=mask, position_ids=position_ids)
    assert door.layout.lengths == (3, 2, 1, 4)
    assert not door.one_per_row
    x = torch.arange(16).view(2, 8)
    assert door.flatten(x).tolist() == [2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert torch.equal(door.unflatten(door.flatten(x)), x * mask)


def test_positions_of_left_padded_rows_from_the_mask_are_no_boundaries():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    position_ids = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    door = open_door((2, 4), attention_mask=mask, position_ids=position_ids)
    assert door.layout.lengths == (2, 4)


def test_a_hole_in_a_row_is_left_out_and_ends_no_document():
    mask = torch.tensor([[1, 1, 0, 0, 1, 1], [0, 1, 1, 1, 0, 1]])
    counted = (mask.cumsum(1) - 1).clamp(min=0)
    for bounds in ({}, {"position_ids": counted}, {"position_ids": torch.arange(6)[None]}):
        door = open_door((2, 6), attention_mask=mask, **bounds)
        assert door.layout.lengths == (4, 4)
        assert door.layout.positions.tolist() == [0, 1, 2, 3] * 2
        assert door.one_per_row
    packed = open_door((2, 6), attention_mask=mask, seq_idx=torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]]))
    assert packed.layout.lengths == (2, 2, 4)


def test_a_document_never_runs_on_into_the_next_row():
    door = open_door((2, 3), position_ids=torch.tensor([[0, 1, 2], [3, 4, 5]]))
    assert door.layout.lengths == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"cu_seq_lens_q": torch.tensor([0, 2, 4]), "position_ids": torch.tensor([[0, 0, 1, 2]])},
            "position_ids begins a document at row 0, token 1, and cu_seq_lens_q does not",
        ),
        (
            {"cu_seq_lens_q": torch.tensor([0, 2, 4]), "position_ids": torch.arange(4)[None]},
            "cu_seq_lens_q begins a document at row 0, token 2, and position_ids does not",
        ),
        (
            {"cu_seq_lens_q": torch.tensor([0, 2, 4]), "cu_seq_lens_k": torch.tensor([0, 3, 4])},
            "cu_seq_lens_q begins a document at row 0, token 2, and cu_seq_lens_k does not",
        ),
        (
            {"seq_idx": torch.tensor([[0, 1, 1, 1]]), "position_ids": torch.arange(4)[None]},
            "seq_idx begins a document at row 0, token 1, and position_ids does not",
        ),
        ({"cu_seq_lens_q": torch.tensor([0, 3])}, "cu_seq_lens_q must rise from 0 to the 4 tokens"),
        ({"cu_seq_lens_q": torch.tensor([1, 4])}, "cu_seq_lens_q must rise from 0 to the 4 tokens"),
        ({"cu_seq_lens_q": torch.tensor([0, 3, 2, 4])}, "cu_seq_lens_q must rise from 0 to the 4 tokens"),
        ({"attention_mask": torch.tensor([[1, 1, 2, 2]])}, "attention_mask holds values other than 0 and 1"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, "attention_mask is .*2-D"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask is .*2-D"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        open_door((1, 4), **arguments)


def test_offsets_that_cross_a_row_are_refused():
    with pytest.raises(ValueError, match="run on from row 0 into row 1"):
        open_door((2, 3), cu_seq_lens_q=torch.tensor([0, 2, 5, 6]))


def test_levels_of_a_tree():
    layout = build_layout([3, 2, 1, 4, 2], [-1, -1, 0, 1, 2])
    assert [level.lengths for level in layout.levels] == [(3, 2), (1, 4), (2,)]
    assert [None if level.parents is None else level.parents.tolist() for level in layout.levels] == [None, [0, 1], [0]]
    assert [level.cu_seqlens.tolist() for level in layout.levels] == [[0, 3, 5], [0, 1, 5], [0, 2]]
    assert layout.ancestors == ((0,), (1,), (0, 2), (1, 3), (0, 2, 4))
    assert layout.positions.tolist() == [0, 1, 2, 0, 1, 3, 2, 3, 4, 5, 4, 5]
    assert layout.cu_seqlens.tolist() == [0, 3, 5, 6, 10, 12]
    assert layout.parents.tolist() == [-1, -1, 0, 1, 2]


@pytest.mark.parametrize(
    ("lengths", "parents", "message"),
    [
        ([1, 2], [-1], "2 segment lengths but 1 parents"),
        ([1, -2], [-1, -1], "segment 1 has length -2"),
        ([1, 2], [1, -1], "segment 0 names parent 1"),
        ([1, 2], [-1, -2], "segment 1 names parent -2"),
        ([1, 2, 3], [-1, 0, -1], "segment 2 is less deep"),
    ],
)
def test_a_layout_that_is_no_tree_by_depth_is_refused(lengths, parents, message):
    with pytest.raises(ValueError, match=message):
        build_layout(lengths, parents)


@given(data=st.data(), count=st.integers(1, 8))
@settings(max_examples=60)
def test_tree_layout_takes_segments_in_any_order(data, count):
    parents = [data.draw(st.integers(-1, s - 1)) for s in range(count)]
    lengths = [data.draw(st.integers(0, 4)) for _ in range(count)]
    shuffled = data.draw(st.permutations(range(count)))
    place = {s: i for i, s in enumerate(shuffled)} | {-1: -1}
    layout, order = tree_layout([lengths[s] for s in shuffled], [place[parents[s]] for s in shuffled])

    def path(s):
        return [] if s < 0 else [*path(parents[s]), s]

    owner = torch.tensor([s for s in shuffled for _ in range(lengths[s])], dtype=torch.long)[order].tolist()
    offset = torch.tensor([t for s in shuffled for t in range(lengths[s])], dtype=torch.long)[order].tolist()
    begun = layout.cu_seqlens.tolist()
    for segment, history in enumerate(layout.ancestors):
        tokens = range(begun[segment], begun[segment + 1])
        assert [offset[t] for t in tokens] == list(range(len(tokens)))
        for t in tokens:
            assert [owner[begun[a]] for a in history if layout.lengths[a]] == [s for s in path(owner[t]) if lengths[s]]
            before = sum(lengths[s] for s in path(owner[t])[:-1])
            assert layout.positions[t] == before + offset[t]


def test_a_circle_is_refused():
    with pytest.raises(ValueError, match="is its own ancestor"):
        tree_layout([1, 1, 1], [1, 2, 0])
    with pytest.raises(ValueError, match="names parent 3"):
        tree_layout([1, 1], [-1, 3])
