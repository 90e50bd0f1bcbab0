"""Rows of tokens read and written tile by tile, factors of the gates, shared memory: beside plain indexing."""

import math

import pytest
import torch

from hybrid_ft.kernels.gated_delta_rule.cpu.plan import plan_chunks
from hybrid_ft.kernels.gated_delta_rule.cpu.tiles import Scratch, TokenRows, cut_blocks, decay_

CPU = torch.device("cpu")
EDGES = {"even": (0, 32, 64), "ragged": (0, 5, 5, 21, 40), "short": (0, 3)}


@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES)
@pytest.mark.parametrize("layout", ["plain", "of one projection", "heads first"])
def test_what_is_read_is_written_back_to_its_token(edges, layout):
    """Padding repeats a token when it is read, and goes nowhere when it is written."""
    tokens, heads, dim = edges[-1], 2, 4
    x = torch.randn(1, tokens, heads, dim, generator=torch.Generator().manual_seed(0))
    if layout == "of one projection":
        x = torch.cat([x.flatten(2), x.flatten(2)], -1)[..., : heads * dim].unflatten(-1, (heads, dim))
    if layout == "heads first":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    plan = plan_chunks(edges, 8, 2, CPU)
    source, target = TokenRows.of(x, plan), TokenRows.like(x, plan)
    for block in cut_blocks(plan, heads, heads, 64):
        for place, there in zip(source.places(block), target.places(block), strict=True):
            shape = place.shape if place.ndim > 1 else (len(place), dim)
            read = torch.empty(shape, dtype=torch.float64)
            source.read(place, read)
            target.write(there, read if there.ndim > 1 or place.ndim == 1 else read.reshape(-1, dim))
    assert torch.equal(target.rows[: tokens * heads].view_as(x), x)


def test_a_group_of_value_heads_reads_its_head_and_adds_up_where_it_writes():
    edges, group = (0, 16), 3
    x = torch.randn(1, 16, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = plan_chunks(edges, 8, 1, CPU)
    source, target = TokenRows.of(x, plan, group), TokenRows.like(x, plan, group)
    for block in cut_blocks(plan, 2 * group, 2 * group, 64):
        for place, there in zip(source.places(block), target.places(block), strict=True):
            spread = place.shape if place.ndim > 1 else (len(place), 4)
            read = torch.empty(spread, dtype=torch.float64)
            source.read(place, read)
            target.write(there, read)
    torch.testing.assert_close(target.rows[:32].view_as(x), group * x)


def test_a_decay_is_its_exponential_and_nothing_where_that_is_subnormal():
    x = torch.tensor([0.0, 1e-3, -1.0, -20.0, -86.0, -88.0, -torch.inf])
    wanted = [1.0, 1.0, *(math.exp(value) for value in (-1, -20, -86)), 0.0, 0.0]
    assert decay_(x.clone()).tolist() == pytest.approx(wanted, rel=1e-6, abs=0)
    wide = decay_(torch.tensor([-88.0, -800.0], dtype=torch.float64))
    assert wide.tolist() == pytest.approx([math.exp(-88.0), 0.0], rel=1e-12, abs=0)


def test_memory_is_taken_again_under_its_name():
    scratch = Scratch(6, torch.zeros(0, dtype=torch.float64))
    first = scratch.take("a", 6, 3, 2).fill_(1)
    again, other = scratch.take("a", 4, 3, 2), scratch.take("b", 2, 3, stack=2)
    assert again.data_ptr() == first.data_ptr() and bool((again == 1).all())
    assert other.shape == (2, 2, 3) and other.data_ptr() != first.data_ptr() and other.dtype == torch.float64
