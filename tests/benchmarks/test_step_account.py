"""The account of a step books products by their operations and the rest by what it moves."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def module(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for folder in ("benchmarks", "benchmarks/gpu_check"):
        monkeypatch.syspath_prepend(str(root / folder))
    path = list(sys.path)
    import step_account

    yield step_account
    sys.path[:] = path
    for name in ("step_account", "libraries"):
        sys.modules.pop(name, None)


def test_what_is_booked_where(module: ModuleType) -> None:
    x, weight = torch.zeros(512, 256), torch.zeros(256, 1024)
    with module.Account() as found:
        y = x @ weight
        y = y + y
        y.view(-1).to(torch.bfloat16)
        q = torch.zeros(2, 3, 64, 16, requires_grad=True)
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
    flops = 2 * 512 * 256 * 1024
    moved = (x.nbytes + weight.nbytes + y.nbytes) / module.BYTES
    assert found.ms["products of the layers"] == pytest.approx(max(flops / module.PRODUCT, moved))
    assert found.ms["sums"] >= 3 * y.nbytes / module.BYTES
    attention = 2 * 2 * 3 * 64**2 * 16
    assert found.ms["attention"] == pytest.approx(attention / module.FORWARD + 2.5 * attention / module.BACKWARD)
