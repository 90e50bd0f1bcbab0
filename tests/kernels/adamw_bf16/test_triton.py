"""AdamW's kernel, in the interpreter or on a GPU, beside the same step in torch with the same random bits."""

import os

import pytest
import torch

from hybrid_ft.kernels.adamw_bf16.reference import Rates, joined, update

triton = pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RATES = Rates(1 - 1e-5, 0.9, 0.95, 2.6e-4, 0.3, 1e-8)
N = 5000


def case(device: str) -> list[torch.Tensor]:
    """weight, low, gradient, m, v of a run that is under way."""
    generator = torch.Generator().manual_seed(0)

    def normal(scale: float) -> torch.Tensor:
        return (scale * torch.randn(N, generator=generator)).bfloat16()

    low = torch.randint(-128, 128, (N,), generator=generator).to(torch.int8)
    made = [normal(0.02), low, normal(1e-3), normal(1e-3), normal(1e-3).square()]
    return [x.to(device) for x in made]


def bits(seed: int, device: str) -> torch.Tensor:
    """The kernel's own, of every place."""
    import triton.language as tl

    from hybrid_ft.kernels.adamw_bf16.gpu.kernels import random_bits

    global _write  # a kernel finds what it calls among the names of its module
    globals().update(random_bits=random_bits, tl=tl)

    @triton.jit
    def _write(out, seed, N, BLOCK: tl.constexpr):
        place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(out + place, random_bits(seed, place), mask=place < N)

    out = torch.zeros(N, dtype=torch.int32, device=device)
    _write[(triton.cdiv(N, 1024),)](out, seed, N, 1024)
    return out


def stepped(device: str, seed: int) -> list[torch.Tensor]:
    from hybrid_ft.kernels.adamw_bf16.gpu.launch import triton_update

    weight, low, gradient, first, second = case(device)
    triton_update(weight, low, gradient, first, second, seed, RATES)
    return [weight, low, first, second]


@pytest.mark.quick
@pytest.mark.parametrize("seed", [7, 2**61 + 12345])
def test_it_is_the_reference_with_the_same_bits(device: str, seed: int) -> None:
    """But for a last bit where the order of a product and a sum differs, which rounding at random may carry one up."""
    random = bits(seed, device) & (2**24 - 1)
    weight, low, gradient, first, second = case(device)
    before = joined(weight, low).clone()
    update(weight, low, gradient, first, second, random, RATES)
    got = stepped(device, seed)
    wide, expected = joined(got[0], got[1]), joined(weight, low)
    assert (expected != before).float().mean() > 0.99
    assert ((wide - expected).abs() <= 2.0**-14 * expected.abs()).all()
    assert (wide == expected).float().mean() > 0.98
    for mine, theirs in ((got[2], first), (got[3], second)):
        assert ((mine.float() - theirs.float()).abs() <= 2.0**-7 * theirs.float().abs()).all()
        assert (mine == theirs).float().mean() > 0.98


def test_bits_are_random_and_of_seed_and_place(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybrid_ft.kernels.adamw_bf16.gpu import launch

    one, again, other = (stepped(device, seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one[1], other[1])
    found = bits(1, device)
    assert len(found.unique()) > 0.999 * N
    for bit in range(24):
        assert abs(float((found >> bit & 1).float().mean()) - 0.5) < 0.03
    monkeypatch.setattr(launch, "MOST", 1024)
    pieces = stepped(device, 1)
    assert torch.equal(pieces[1][:1024], one[1][:1024]) and not torch.equal(pieces[1], one[1])
    assert ((joined(*pieces[:2]) - joined(*one[:2])).abs() <= 2.0**-14 * joined(*one[:2]).abs()).all()


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.kernels
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiled(assert_compiles, arch: int) -> None:
    from hybrid_ft.kernels.adamw_bf16.gpu import launch

    weight, low, gradient, first, second = case("cpu")
    assert_compiles(launch, lambda: launch.triton_update(weight, low, gradient, first, second, 2**61, RATES), arch)
