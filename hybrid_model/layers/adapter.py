"""transformers' own recurrent mixers on flat segments: exact, with forks.

A mixer is called as transformers wrote it, once for all segments of one length of a level. In the cache's place it
finds a ``Tape``, which hands it a parent's convolution tail and state and keeps its own for its children. Nothing is
copied in place, so that gradients flow from a child to its parent.

A mixer that is given a cache computes no fused training path. So a LoRA adapter on a Mamba ``out_proj`` trains here;
with mamba-ssm's fused kernel, which reads the base's weight alone, it would not.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hybrid_ft.hybrid_model.door.cache_name import CACHE
from hybrid_ft.hybrid_model.door.current import current_layout
from hybrid_ft.hybrid_model.door.layout import Level, SequenceLayout
from hybrid_ft.hybrid_model.layers.pickled import let_pickle

# one segment's past: its tails and states, by kind and number; None for a fresh start
Past = dict[tuple[str, int], torch.Tensor] | None


class Tape:
    """What a mixer asks of transformers' cache, for segments of one length; ``past`` and ``made`` are by rows.

    ``stepped``: what a single step has changed in place, which backward does not survive.
    """

    def __init__(self, past: Past = None) -> None:
        self.past = past or {}
        self.made: dict[tuple[str, int], torch.Tensor] = {}
        self.stepped: set[tuple[str, int]] = set()

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self._copy(("conv", state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self._copy(("state", state_idx))

    def has_previous_state(self, *args: Any, **kwargs: Any) -> bool:
        return bool(self.past)

    def is_recording_past(self, layer_idx: int) -> bool:
        """Always, so that most mixers do not convolve one token in place."""
        return True

    @property
    def layers(self) -> Mapping[int, Any]:
        """Where transformers 5.20 looks for the same."""
        return defaultdict(lambda: SimpleNamespace(record_past=True))

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int = 0, **_: Any
    ) -> torch.Tensor:
        """The tail and the new inputs [rows, channels, tokens]; the last ``conv_kernel_size`` are kept."""
        old = self.past.get(("conv", state_idx))
        whole = conv_states if old is None else torch.cat([old, conv_states], dim=-1)
        self._keep(("conv", state_idx), F.pad(whole, (conv_kernel_size, 0))[..., -conv_kernel_size:])
        return whole

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **_: Any
    ) -> torch.Tensor:
        self._keep(("state", state_idx), recurrent_states)
        return recurrent_states

    def _copy(self, key: tuple[str, int]) -> torch.Tensor | None:
        """A single step may change it in place and hand nothing on: then the copy is what has been made."""
        if key not in self.past:
            return None
        self.stepped.add(key)
        return self.made.setdefault(key, self.past[key].clone())

    def _keep(self, key: tuple[str, int], value: torch.Tensor) -> None:
        self.made[key] = value
        self.stepped.discard(key)


def is_mixer(module: nn.Module) -> bool:
    """Whether a module is a recurrent mixer: it owns a depthwise convolution."""
    return any(isinstance(child, nn.Conv1d) and child.groups == child.in_channels for child in module.children())


def disguised(flat: type, cls: type) -> type:
    """The class ``flat`` under the name of ``cls``: FSDP's wrapping, device maps and checkpoints go by names."""
    flat.__name__, flat.__qualname__, flat.__module__ = cls.__name__, cls.__qualname__, cls.__module__
    let_pickle(flat)
    return flat


@cache
def segment_wise(cls: type[nn.Module], forks: bool) -> type[nn.Module]:
    """A mixer's class with a forward that takes [1, N, D] of the current layout; without a layout it is transformers'.

    ``forks``: whether a segment may continue another. Raises ValueError in forward where it may not and does.
    """
    parameters = inspect.signature(cls.forward).parameters
    slot = next(name for name in (CACHE, "cache_params", "past_key_values") if name in parameters)

    class SegmentWise(cls):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            layout = current_layout()
            if layout is None:
                with padding_is_zero(self, kwargs.get("attention_mask"), hidden_states):
                    return super().forward(hidden_states, *args, **kwargs)
            if len(layout.levels) > 1 and not forks:
                raise ValueError(
                    f"{cls.__name__} cannot continue a segment: pass each row whole, without shared prompts"
                )
            kwargs |= {"attention_mask": None}

            def run(x: torch.Tensor, past: Past) -> tuple[torch.Tensor, dict[tuple[str, int], torch.Tensor]]:
                tape = Tape(past)
                y = super(SegmentWise, self).forward(x, **kwargs | {slot: tape})
                if tape.stepped and x.shape[1] == 1:
                    raise ValueError(
                        f"{cls.__name__}: a segment of one token that continues another and is continued itself cannot "
                        "be computed exactly; join it with one of them"
                    )
                return (y[0] if isinstance(y, tuple) else y), tape.made

            return _by_levels(hidden_states.squeeze(0), layout, run).unsqueeze(0)

    return disguised(SegmentWise, cls)


@contextmanager
def padding_is_zero(mixer: Any, mask: torch.Tensor | None, x: torch.Tensor) -> Iterator[None]:
    """Inside, what is projected of padding is zero. transformers masks what goes in alone: where the projection has a
    bias, a row that is padded on the left begins its convolution with it."""
    projection: Any = getattr(mixer, "in_proj", None)
    if mask is None or mask.shape != x.shape[:2] or getattr(projection, "bias", None) is None:
        yield
        return
    of_tokens = mask[..., None]
    handle = projection.register_forward_hook(lambda module, given, out: out * of_tokens.to(out.dtype))
    try:
        yield
    finally:
        handle.remove()


def _by_levels(x: torch.Tensor, layout: SequenceLayout, run: Any) -> torch.Tensor:
    """[N, D] -> [N, D], level after level."""
    outputs: list[torch.Tensor] = []
    made: list[Past] = []
    sizes = [sum(level.lengths) for level in layout.levels]
    for depth, (level, flat) in enumerate(zip(layout.levels, x.split(sizes))):
        pasts = [None] * len(level.lengths) if level.parents is None else [made[p] for p in level.parents.tolist()]
        below = layout.levels[depth + 1].parents if depth + 1 < len(layout.levels) else None
        o, made = _level(flat, level, pasts, run, set() if below is None else set(below.tolist()))
        outputs += o
    return torch.cat(outputs) if outputs else x


def _level(
    x: torch.Tensor, level: Level, pasts: list[Past], run: Any, continued: set[int]
) -> tuple[list[torch.Tensor], list[Past]]:
    """Outputs by segment, and of the ``continued`` ones the past for their children; an empty one
    hands on its parent's.

    One token that continues another segment is taken twice where nothing continues it: a mixer's single step has other
    rules than its scan (no gradient, no lower bound of the time step), and the second changes nothing in the first.
    """
    parts = x.split(level.lengths)
    outputs, made = list(parts), list(pasts)
    groups: dict[tuple[int, bool, bool], list[int]] = {}
    for s, length in enumerate(level.lengths):
        if length:
            twice = length == 1 and pasts[s] is not None and s not in continued
            groups.setdefault((length, pasts[s] is None, twice), []).append(s)
    for (length, fresh, twice), members in sorted(groups.items()):
        past = None
        if not fresh:
            rows = [pasts[s] or {} for s in members]
            past = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        rows_in = torch.stack([parts[s] for s in members])
        y, new = run(rows_in.repeat_interleave(2, dim=1) if twice else rows_in, past)
        for i, s in enumerate(members):
            outputs[s] = y[i, :length]
            made[s] = {key: value[i] for key, value in new.items()} if s in continued else None
    return outputs, made
