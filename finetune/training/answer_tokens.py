"""A micro-batch of answers, laid out before a GPU is asked for anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from hybrid_ft.hybrid_model.door.layout import Door, SequenceLayout, open_door
from hybrid_ft.hybrid_model.door.shared_prompts import open_shared_door


@dataclass(frozen=True, eq=False)
class AnswerTokens:
    """A batch's tokens in one row, each shared prompt once, and where its answers are in it.

    input_ids  int64 [1, N]
    layout     of these tokens
    before     int64 [M + 1], the places in that row whose hidden states predict the answers' M tokens, and one more:
               TRL's fused head leaves out the last it is given
    targets    int64 [1, M + 1], -100 and these M tokens, which the head shifts
    places     int64 [M], where the M stand among the B * (T - 1) of TRL's log-probabilities
    shape      (B, T - 1)
    """

    input_ids: torch.Tensor
    layout: SequenceLayout
    before: torch.Tensor
    targets: torch.Tensor
    places: torch.Tensor
    shape: tuple[int, int]

    def to(self, device: torch.device | str) -> AnswerTokens:
        """The same on another device; nothing waits for it."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        return replace(self, layout=self.layout.to(device, non_blocking=True), **moved)


_TENSORS = ("input_ids", "before", "targets", "places")


def answer_tokens(batch: Mapping[str, torch.Tensor], forks: bool) -> AnswerTokens:
    """Lay out a batch that lies on the CPU: ``input_ids``, ``attention_mask`` and ``completion_mask`` [B, T], padded on
    the right, ``prompt_lengths`` and ``prompt_rows`` [B].

    forks  whether the model can continue a prompt several times; without, each row is a document of its own
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    shape = (ids.shape[0], ids.shape[1])
    flat_of = torch.full((shape[0] * shape[1],), -1)
    door: Door
    if forks:
        door = shared = open_shared_door(ids, batch["prompt_lengths"], batch["prompt_rows"], mask)
        flat_of[slice(None) if shared.places is None else shared.places] = shared.sources
    else:
        door = open_door(shape, attention_mask=mask)
        flat_of[slice(None) if door.index is None else door.index] = torch.arange(len(door.layout.positions))
    # nothing predicts the first token of a row
    rows, columns = batch["completion_mask"][:, 1:].nonzero(as_tuple=True)
    before = flat_of[rows * shape[1] + columns]
    return AnswerTokens(
        door.flatten(ids)[None],
        door.layout,
        F.pad(before, (0, 1)),
        F.pad(ids[rows, columns + 1], (1, 0), value=-100)[None],
        rows * (shape[1] - 1) + columns,
        (shape[0], shape[1] - 1),
    )
