"""A mixer of transformers' called segment by segment: each path as a row of its own."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hybrid_ft.hybrid_model.door.current import laid_out
from hybrid_ft.hybrid_model.door.layout import build_layout
from hybrid_ft.hybrid_model.layers.adapter import Tape, disguised, is_mixer, padding_is_zero, segment_wise


class Mixer(nn.Module):
    """A convolution of 3 and a running sum, which keep their past as transformers' mixers do."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(4, 4)
        self.conv1d = nn.Conv1d(4, 4, 3, groups=4)

    def forward(
        self, hidden_states: torch.Tensor, cache_params: Any = None, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = self.in_proj(hidden_states).transpose(1, 2)
        state = torch.zeros_like(x[..., 0])
        if cache_params is not None:
            if cache_params.has_previous_state(0):
                state = cache_params.get_recurrent_state(0)
            x = cache_params.update_conv_state(x, 0, conv_kernel_size=3)
        y = F.conv1d(F.pad(x, (2, 0)), self.conv1d.weight, groups=4)[..., -hidden_states.shape[1] :]
        out = y.cumsum(-1) + state[..., None]
        if cache_params is not None:
            cache_params.update_recurrent_state(out[..., -1], 0)
        return out.transpose(1, 2)


TREES = {
    "packed": ([5, 1, 4, 1], [-1, -1, -1, -1]),
    "forks": ([4, 3, 1, 3], [-1, 0, 0, 0]),
    "depth four and an empty one": ([3, 0, 2, 2, 4], [-1, 0, 0, 1, 3]),
}


@pytest.fixture
def mixer() -> Mixer:
    torch.manual_seed(0)
    return Mixer().double()


def paths(lengths: list[int], parents: list[int], x: torch.Tensor) -> list[torch.Tensor]:
    parts = x.split(lengths)
    found: list[torch.Tensor] = []
    for part, parent in zip(parts, parents, strict=True):
        found.append(torch.cat([found[parent], part]) if parent >= 0 else part)
    return found


@pytest.mark.parametrize("tree", TREES)
def test_each_segment_goes_on_from_its_parent_with_its_gradient(mixer: Mixer, tree: str) -> None:
    lengths, parents = TREES[tree]
    x = torch.randn(sum(lengths), 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(sum(lengths), 4, dtype=torch.float64)
    ours = segment_wise(Mixer, True)()
    ours.double().load_state_dict(mixer.state_dict())
    with laid_out(build_layout(lengths, parents)):
        got = ours(x[None])[0]
    wanted = torch.cat(
        [mixer(row[None])[0][len(row) - size :] for row, size in zip(paths(lengths, parents, x), lengths, strict=True)]
    )
    torch.testing.assert_close(got, wanted)
    gradients = [torch.autograd.grad((out * weight).sum(), x)[0] for out in (got, wanted)]
    torch.testing.assert_close(*gradients)


def test_without_a_layout_it_is_transformers_own(mixer: Mixer) -> None:
    ours = segment_wise(Mixer, True)().double()
    ours.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    assert torch.equal(ours(x), mixer(x))


def test_a_mixer_that_starts_afresh_is_not_forked(mixer: Mixer) -> None:
    ours = segment_wise(Mixer, False)().double()
    with laid_out(build_layout([2, 3], [-1, 0])), pytest.raises(ValueError, match="Mixer cannot continue a segment"):
        ours(torch.zeros(1, 5, 4, dtype=torch.float64))


def test_a_tape_keeps_the_last_inputs_and_gives_copies() -> None:
    tape = Tape({("conv", 0): torch.ones(1, 2, 3), ("state", 0): torch.full((1, 2), 5.0)})
    assert tape.has_previous_state() and not Tape().has_previous_state()
    whole = tape.update_conv_state(torch.zeros(1, 2, 4), 0, conv_kernel_size=3)
    assert whole.shape == (1, 2, 7) and torch.equal(tape.made["conv", 0], torch.zeros(1, 2, 3))
    short = Tape()
    short.update_conv_state(torch.ones(1, 2, 1), 0, conv_kernel_size=3)
    assert short.made["conv", 0].tolist() == [[[0, 0, 1]] * 2]
    copy = tape.get_recurrent_state(0)
    assert copy is not None
    copy.zero_()
    assert tape.past["state", 0].tolist() == [[5, 5]] and tape.stepped == {("state", 0)}


def test_a_mixer_is_known_by_its_depthwise_convolution(mixer: Mixer) -> None:
    assert is_mixer(mixer) and not is_mixer(nn.Sequential(nn.Conv1d(4, 4, 3)))


def test_what_is_projected_of_padding_is_zero_inside_alone(mixer: Mixer) -> None:
    x, mask = torch.randn(2, 3, 4, dtype=torch.float64), torch.tensor([[0, 1, 1], [1, 1, 1]])
    with padding_is_zero(mixer, mask, x):
        inside = mixer.in_proj(x)
    assert torch.equal(inside, mixer.in_proj(x) * mask[..., None])
    assert bool((mixer.in_proj(x)[0, 0] != 0).any())


def test_a_class_is_disguised_as_the_one_it_stands_for() -> None:
    made = disguised(type("Other", (Mixer,), {}), Mixer)
    assert (made.__name__, made.__qualname__, made.__module__) == ("Mixer", "Mixer", Mixer.__module__)
