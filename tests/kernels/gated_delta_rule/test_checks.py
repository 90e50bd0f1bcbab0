"""What does not fit is refused with one line that names the argument, what it got and the rule."""

from collections.abc import Callable

import pytest
import torch

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule, gated_delta_rule_step
from hybrid_ft.kernels.gated_delta_rule.checks import check_cu_seqlens, check_gpu_inputs, check_inputs
from hybrid_ft.kernels.gated_delta_rule.cpu.tiles import decay_


def good() -> dict:
    q, k, v = torch.randn(1, 6, 2, 8), torch.randn(1, 6, 2, 8), torch.randn(1, 6, 4, 16)
    return {"q": q, "k": k, "v": v, "g": -torch.rand(1, 6, 4), "beta": torch.rand(1, 6, 4)}


BAD = {
    "q rank": ({"q": torch.randn(6, 2, 8)}, r"q: got \(6, 2, 8\) torch.float32; .* 4 dimensions"),
    "q not a tensor": ({"q": None}, r"q: got NoneType; .* 4 dimensions"),
    "q integer": ({"q": torch.ones(1, 6, 2, 8, dtype=torch.int64)}, r"q: got \(1, 6, 2, 8\) torch.int64; .* float"),
    "k shape": ({"k": torch.randn(1, 6, 2, 4)}, r"k: got shape \(1, 6, 2, 4\); it must be q's, \(1, 6, 2, 8\)"),
    "k dtype": ({"k": torch.randn(1, 6, 2, 8).double()}, r"k: got torch.float64; .* one dtype, and q is torch.float32"),
    "v tokens": ({"v": torch.randn(1, 5, 4, 16)}, r"v: got shape \(1, 5, 4, 16\); its first two sizes .* \(1, 6\)"),
    "v heads": ({"v": torch.randn(1, 6, 3, 16)}, r"v: got 3 value heads; .* multiple of q's 2 heads"),
    "g shape": ({"g": torch.zeros(1, 6, 2)}, r"g: got shape \(1, 6, 2\); .* \(1, 6, 4\)"),
    "beta shape": ({"beta": torch.zeros(1, 6, 2)}, r"beta: got shape \(1, 6, 2\); .* \(1, 6, 4\)"),
    "beta device": ({"beta": torch.zeros(1, 6, 4, device="meta")}, r"beta: got device meta; it must be q's, cpu"),
    "edges dtype": (
        {"cu_seqlens": torch.tensor([0.0, 6.0])},
        r"cu_seqlens: got \(2,\) torch.float32; .* int32 or int64",
    ),
    "edges start": ({"cu_seqlens": torch.tensor([1, 6])}, r"cu_seqlens: got 1 \.\.\. 6; .* start at 0 and end at 6"),
    "edges end": ({"cu_seqlens": torch.tensor([0, 5])}, r"cu_seqlens: got 0 \.\.\. 5; .* start at 0 and end at 6"),
    "edges order": ({"cu_seqlens": torch.tensor([0, 4, 3, 6])}, r"cu_seqlens: got 4 then 3 at 1; it must not decrease"),
    "state shape": (
        {"initial_state": torch.zeros(2, 4, 8, 16)},
        r"initial_state: got \(2, 4, 8, 16\) torch.float32; .* shape \(1, 4, 8, 16\)",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_argument(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        gated_delta_rule(**{**good(), **change})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"g": torch.full((1, 6, 4), 0.5)}, "g: got values from 0.5 to 0.5; they must be from -inf to 0"),
        ({"g": torch.full((1, 6, 4), torch.nan)}, "g: got values from nan to nan"),
        ({"beta": torch.full((1, 6, 4), 2.5)}, "beta: got values from 2.5 to 2.5; they must be from 0 to 2"),
    ],
    ids=["g", "nan", "beta"],
)
def test_values_are_checked_when_asked_for(change: dict, message: str) -> None:
    gated_delta_rule(**good(), check_values=True)
    gated_delta_rule(**{**good(), **change})
    with pytest.raises(ValueError, match=message):
        gated_delta_rule(**{**good(), **change}, check_values=True)


def test_edges_on_another_device_are_not_read() -> None:
    """Reading them would wait for the device; the meta device cannot be read at all."""
    edges = torch.empty(3, dtype=torch.int64, device="meta")
    check_inputs(**good(), cu_seqlens=edges)
    with pytest.raises(ValueError, match="cu_seqlens: got a batch of 2"):
        check_cu_seqlens(edges, 2, 6, values=False)


@pytest.mark.parametrize(
    ("dims", "dtype", "message"),
    [
        ((24, 32), torch.float32, "q, k: got head size 24; on a GPU it must be a multiple of 16, from 16 to 256"),
        ((32, 272), torch.float32, "v: got head size 272"),
        ((32, 32), torch.float64, "q: got torch.float64; on a GPU it must be float32, bfloat16 or float16"),
    ],
    ids=str,
)
def test_what_a_gpu_cannot_take(dims: tuple[int, int], dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_gpu_inputs(*(torch.zeros(1, 1, 1, size, dtype=dtype) for size in dims))


def test_a_gpu_has_kernels_for_16_bits_and_torch_for_the_rest(
    as_on_a_gpu: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 with heads that no kernel has: the CPU's numbers, and no kernel is launched."""
    wide = {name: x.float() for name, x in good().items()} | {"cu_seqlens": torch.tensor([0, 2, 6])}
    expected, _ = gated_delta_rule(**wide)
    launched = []
    pytest.importorskip("triton")
    from hybrid_ft.kernels.gated_delta_rule.gpu import autograd as module

    monkeypatch.setattr(module, "triton_gated_delta_rule", lambda q, *rest: launched.append(q.dtype) or (q, None))
    with as_on_a_gpu():
        o, _ = gated_delta_rule(**wide)
        for dtype in (torch.bfloat16, torch.float16):
            narrow = {name: torch.zeros(1, 6, 4, 16, dtype=dtype) for name in "qkv"}
            gated_delta_rule(**narrow, **{name: wide[name] for name in ("g", "beta")})
    assert launched == [torch.bfloat16, torch.float16]
    assert torch.equal(o, expected)


def test_a_gpu_is_told_to_leave_out_the_correction_but_in_float16(
    as_on_a_gpu: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from hybrid_ft.kernels.gated_delta_rule.gpu import autograd as module

    told = []
    monkeypatch.setattr(module, "triton_gated_delta_rule", lambda q, *rest: told.append(rest[-1]) or (q, None))
    rates = {name: good()[name].float() for name in ("g", "beta")}
    with as_on_a_gpu():
        for correct in (True, False):
            narrow = {name: torch.zeros(1, 6, 4, 16, dtype=torch.bfloat16) for name in "qkv"}
            gated_delta_rule(**narrow, **rates, correct=correct)
        half = {name: torch.zeros(1, 6, 4, 16, dtype=torch.float16) for name in "qkv"}
        with pytest.raises(ValueError, match="q: got torch.float16; on a GPU, without the correction, it must be"):
            gated_delta_rule(**half, **rates, correct=False)
    assert told == [True, False]


def test_packed_segments_want_one_row() -> None:
    batch = {name: x.expand(3, *x.shape[1:]) for name, x in good().items()}
    with pytest.raises(ValueError, match=r"cu_seqlens: got a batch of 3; packed segments need a batch of 1"):
        gated_delta_rule(**batch, cu_seqlens=torch.tensor([0, 6]))


def test_step_checks_its_state() -> None:
    row = {name: x[:, 0] for name, x in good().items()}
    with pytest.raises(ValueError, match=r"state: got \(1, 4, 8, 8\) torch.float32; .* shape \(1, 4, 8, 16\)"):
        gated_delta_rule_step(**row, state=torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decays_are_normal_numbers_or_zero(dtype: torch.dtype) -> None:
    """One subnormal number costs a CPU as much as forty others; a closed head would be full of them."""
    logs = torch.cat([torch.linspace(-800, 3, 9999, dtype=dtype), torch.tensor([float("-inf")], dtype=dtype)])
    decays = decay_(logs.clone())
    assert (decays[decays != 0] >= torch.finfo(dtype).tiny).all() and decays.max() == 1
    kept = logs > (-86 if dtype == torch.float32 else -699)
    assert torch.equal(decays[kept], logs[kept].clamp(max=0).exp())
