"""Rows with the same prompt, laid flat so that it is computed once.

A preference pair comes as two rows, prompt + chosen and prompt + rejected. Past this door it is three segments: the
prompt, and two continuations that name it as their parent. The same serves any number of answers to one prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch

from hybrid_ft.hybrid_model.door.layout import Door, build_layout, open_door
from hybrid_ft.hybrid_model.door.rows import take_rows


@dataclass(frozen=True, eq=False)
class SharedDoor(Door):
    """A door whose flat run holds every shared prompt once.

    index    int64 [N], the place among the B * T that each flat token is read from
    places   int64 [M], the places of all real tokens, row by row; None where every place is real
    sources  int64 [M], the flat token that each of them is
    """

    places: torch.Tensor | None
    sources: torch.Tensor

    def unflatten(self, x: torch.Tensor) -> torch.Tensor:
        """[N, ...] -> [B, T, ...], a shared prompt's tokens in each of its rows, zeros at the padding."""
        x = take_rows(x, self.sources)
        if self.places is not None:
            rows = x.new_zeros(self.shape[0] * self.shape[1], *x.shape[1:])
            x = rows.index_copy(0, self.places, x)
        return x.unflatten(0, self.shape)


def open_shared_door(
    input_ids: torch.Tensor,
    prompt_lengths: torch.Tensor,
    prompt_rows: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> SharedDoor:
    """Read padded rows, some of which share their first tokens, into a door.

    input_ids       int64 [B, T]
    prompt_lengths  int64 [B], leading tokens of each row that others may share; 0 for none
    prompt_rows     int64 [B], the row whose prompt stands for this row's own; rows of one value share one prompt
    attention_mask  [B, T] of 0 and 1, padding on the left, the right or both

    The flat run depends on the rows' tokens alone and not on their order, so exchanging rows changes no number in it.
    A prompt that no other row shares is not cut off; of rows that are the same to the last token, as an answer is that
    stands in several pairs, one is computed for all. Raises ValueError where rows that should share a prompt differ
    in it, and for lengths or rows out of range.
    """
    device, shape = input_ids.device, (input_ids.shape[0], input_ids.shape[1])
    for name, column in (("prompt_lengths", prompt_lengths), ("prompt_rows", prompt_rows)):
        if column.shape != shape[:1]:
            raise ValueError(f"{name} is {tuple(column.shape)}; with {shape[0]} rows it must be {shape[:1]}")
    plain = open_door(shape, device, attention_mask=attention_mask)
    starts = plain.layout.cu_seqlens.tolist()
    flat = plain.flatten(input_ids).tolist()
    rows = [flat[start:stop] for start, stop in pairwise(starts)]
    owners = prompt_rows.tolist()
    cuts = prompt_lengths.tolist()
    _check(rows, cuts, owners)
    sharing = Counter(owner for owner, cut in zip(owners, cuts) if cut)
    owners = [owner if cut and sharing[owner] > 1 else -1 for owner, cut in zip(owners, cuts)]
    cuts = [cut if owner >= 0 else 0 for owner, cut in zip(owners, cuts)]

    first: dict[tuple[int, tuple[int, ...]], int] = {}
    alike = [first.setdefault((owner, tuple(row)), r) for r, (owner, row) in enumerate(zip(owners, rows))]

    # equal lengths stand side by side, so that attention can take them in one call
    prompts = {owner: cut for owner, cut in zip(owners, cuts) if owner >= 0}
    segments = [(cut, rows[r][:cut], r, True) for r, cut in prompts.items()]
    segments += [(len(rows[r]), rows[r], r, False) for r in first.values() if owners[r] < 0]
    segments.sort()
    segments += sorted((len(rows[r]) - cuts[r], rows[r], r, False) for r in first.values() if owners[r] >= 0)
    place_of = {(r, is_prompt): s for s, (_, _, r, is_prompt) in enumerate(segments)}
    parents = [-1 if is_prompt or owners[r] < 0 else place_of[owners[r], True] for _, _, r, is_prompt in segments]
    layout = build_layout([length for length, *_ in segments], parents, device)

    begins = layout.cu_seqlens.tolist()
    order = [(starts[r] if is_prompt else starts[r] + cuts[r], length) for length, _, r, is_prompt in segments]
    sources = [
        run
        for r, row in enumerate(rows)
        for run in (
            (begins[place_of[owners[r], True]] if owners[r] >= 0 else 0, cuts[r]),
            (begins[place_of[alike[r], False]], len(row) - cuts[r]),
        )
    ]
    index = _runs(order, device)
    if plain.index is not None:
        index = plain.index.index_select(0, index)
    return SharedDoor(layout, shape, index, False, plain.index, _runs(sources, device))


def select_tokens(door: Door, x: torch.Tensor, keep_positions: torch.Tensor) -> torch.Tensor:
    """[N, ...] -> [M, ...]: the M places of the batch where ``keep_positions``, bool [B, T], is set, row by row; or
    those that it names, int64 [M], of a batch that is one row of real tokens alone, as one with a layout is.

    The rows with their padding are never formed. Raises ValueError where ``keep_positions`` is set at padding.
    """
    if keep_positions.dtype == torch.int64:
        if door.index is not None or door.shape[0] != 1:
            raise ValueError("keep_positions by number is for one row without padding; pass bool [B, T]")
        return take_rows(x, keep_positions)
    if tuple(keep_positions.shape) != door.shape:
        raise ValueError(f"keep_positions is {tuple(keep_positions.shape)}; the batch is {door.shape}")
    places, sources = (door.places, door.sources) if isinstance(door, SharedDoor) else (door.index, None)
    wanted = keep_positions.flatten()
    real = wanted if places is None else wanted.index_select(0, places)
    tokens = real.nonzero().squeeze(1)
    if places is not None and len(tokens) != int(wanted.sum()):
        raise ValueError("keep_positions is set at padding, which has no hidden state")
    return take_rows(x, tokens if sources is None else sources.index_select(0, tokens))


def _check(rows: list[list[int]], cuts: list[int], owners: list[int]) -> None:
    for r, (row, cut, owner) in enumerate(zip(rows, cuts, owners)):
        if not 0 <= cut <= len(row):
            raise ValueError(f"prompt_lengths of row {r} is {cut}; the row has {len(row)} tokens")
        if not 0 <= owner < len(rows):
            raise ValueError(f"prompt_rows of row {r} is {owner}; there are {len(rows)} rows")
        if cut != cuts[owner] or row[:cut] != rows[owner][:cut]:
            raise ValueError(f"row {r} is to share the prompt of row {owner}, but their first {cut} tokens differ")


def _runs(runs: Iterable[tuple[int, int]], device: torch.device) -> torch.Tensor:
    """int64: the numbers from each start, as many as its length, run after run."""
    pieces = [torch.arange(start, start + length) for start, length in runs]
    return (torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)).to(device, non_blocking=True)
