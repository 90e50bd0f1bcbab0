"""Rows of a tensor, with a backward that adds in one order."""

from torch import Tensor


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index] along the first dimension; ``index`` int64 may name a row more than once.

    On a GPU index_select's backward adds with atomics, in whatever order threads come: two runs of a tree of segments
    would differ in their last bits. That of x[index] sorts the index and adds the rows of one place one after another.
    On a CPU both are exact in their order, and index_select is the faster.
    """
    return x[index] if x.is_cuda else x.index_select(0, index)
