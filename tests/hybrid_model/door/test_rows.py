"""Rows that are taken several times, and what their backward adds."""

from collections.abc import Callable

import torch

from hybrid_ft.hybrid_model.door.rows import take_rows


def test_rows_and_their_gradient(as_on_a_gpu: Callable) -> None:
    x, index = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.tensor([4, 0, 4, 4, 2])
    up = torch.randn(5, 3, dtype=torch.float64)
    wanted = torch.zeros(5, 3, dtype=torch.float64).index_add(0, index, up)
    with as_on_a_gpu():
        on_gpu = take_rows(x, index)
    on_cpu = take_rows(x, index)
    for rows in (on_gpu, on_cpu):
        assert torch.equal(rows, x.detach()[index])
        torch.testing.assert_close(torch.autograd.grad(rows, x, up)[0], wanted)
    # index_put's sum, which a GPU sorts for, and not index_select's, for which it uses atomics
    assert on_gpu.grad_fn.name() == "IndexBackward0" and on_cpu.grad_fn.name() == "IndexSelectBackward0"
