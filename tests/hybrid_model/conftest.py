from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from transformers import OlmoHybridConfig, OlmoHybridForCausalLM
from transformers.models.olmo_hybrid import modeling_olmo_hybrid

from hybrid_ft.hybrid_model.lay_flat import lay_flat

Pair = tuple[OlmoHybridForCausalLM, OlmoHybridForCausalLM]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fill every parameter, norms and gates included, so that nothing is hidden by a value of 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("A_log"):
                parameter.copy_(0.5 * noise)
            elif name.endswith("dt_bias"):
                parameter.copy_(noise - 1.5)
            elif "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            elif "conv1d" in name:
                parameter.copy_(noise)
            elif "embed" in name:
                parameter.copy_(2 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., OlmoHybridConfig]:
    """A small config; keyword arguments replace its fields. Without rope unless ``rope_parameters`` says so."""

    def make(**fields: object) -> OlmoHybridConfig:
        small = {
            "vocab_size": 61,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "num_attention_heads": 4,
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 12,
            "linear_value_head_dim": 24,
            "pad_token_id": 0,
            "eos_token_id": None,
            "bos_token_id": None,
            "rope_parameters": {"rope_theta": None},
        }
        return OlmoHybridConfig(**(small | fields))

    return make


@pytest.fixture(scope="session")
def make_pair(make_config: Callable[..., OlmoHybridConfig]) -> Callable[..., Pair]:
    """transformers' model and ours on the same random weights, in eval mode."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float32, **fields: object) -> Pair:
        config = make_config(**fields)
        plain = OlmoHybridForCausalLM(config).to(dtype).eval()
        randomise(plain, seed)
        ours = lay_flat(OlmoHybridForCausalLM(config)).to(dtype).eval()
        ours.load_state_dict(plain.state_dict())
        return plain, ours

    return make


@pytest.fixture(scope="session")
def relative() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """Relative L2 distance from the second to the first."""

    def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
        got, expected = got.detach().double(), expected.detach().double()
        return float((got - expected).norm() / expected.norm().clamp(min=1e-30))

    return distance


@pytest.fixture(scope="session")
def assert_gradients() -> Callable[..., None]:
    """Every parameter's gradient within a relative L2 distance.

    A gradient that is a small sum of large terms (a gate's, or a query's of a single token, which is zero) carries the
    rounding of its terms: below a hundredth of the whole gradient it is held against that hundredth.
    """

    def check(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
        assert got.keys() == expected.keys()
        whole = float(torch.stack([gradient.double().norm() for gradient in expected.values()]).norm())
        for name, gradient in expected.items():
            distance = float((got[name].double() - gradient.double()).norm())
            assert distance <= tolerance * max(float(gradient.double().norm()), 1e-2 * whole), name

    return check


class _Torch64:
    """torch, except that float32 is float64."""

    def __getattr__(self, name: str) -> object:
        return torch.float64 if name == "float32" else getattr(torch, name)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """Let transformers' model compute in float64: its code casts to float32 in the norms, the gates and the rule."""

    @contextmanager
    def context() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(modeling_olmo_hybrid, "torch", _Torch64())
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            yield

    return context
