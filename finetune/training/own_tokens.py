"""A process's part of a micro-batch whose tokens its team shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.training.answer_tokens import AnswerTokens
from hybrid_ft.hybrid_model.door.layout import SequenceLayout, tree_layout
from hybrid_ft.hybrid_model.door.spread import Spread
from hybrid_ft.hybrid_model.families.known import FAMILIES, family_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from hybrid_ft.finetune.runs.team import Team


def check_heads(config: PreTrainedConfig, size: int) -> None:
    """Raise InputError for a model whose heads cannot be shared by ``size`` processes."""
    if size == 1:
        return
    family, key = family_of(config), f"train.sequence_parallel: got {size}"
    if not family.shares_heads:
        able = ", ".join(one.name for one in FAMILIES if one.shares_heads)
        raise InputError(
            f"{key}; the mixers of {family.name} cannot be shared by heads; leave it out (it is for {able})"
        )
    if (most := family.most_processes(config)) < size:
        raise InputError(f"{key}; must be at most {most}, the heads of this model that can be shared; lower it")


def own_pack(batch: dict[str, Any], team: Team) -> dict[str, Any]:
    """Of a packed batch, which lies on the CPU, the tokens of this process, in the form the model and TRL's head take.

    input_ids, position_ids  int64 [1, n], its own
    keep_positions           int64 [M + 1], the places among them that predict a token with a label, and one more: the
                             head leaves out the last it is given
    labels, weights          [1, M + 1]: one that is not read, and those of the M tokens
    layout                   of all tokens
    """
    if team.size == 1:
        return batch
    layout, moved = _of_enough(batch["layout"], team.size)
    columns = {name: batch[name][0] for name in ("input_ids", "labels", "position_ids", "weights") if name in batch}
    if moved is not None:
        columns = {
            name: F.pad(x, (0, len(moved) - len(x)), value=_BLANK.get(name, 0))[moved] for name, x in columns.items()
        }
    spread = _spread(layout, team)
    # what each token predicts is its neighbour's, which may lie with the next process
    target = F.pad(columns["labels"][1:], (0, 1), value=-100)[spread.own]
    labelled = (target != -100).nonzero().squeeze(1)
    if not len(labelled):  # the head takes one place at least
        labelled = torch.zeros(1, dtype=torch.int64)
    own = {"labels": F.pad(target[labelled], (1, 0), value=-100)[None]}
    if "weights" in columns:
        weight = F.pad(columns["weights"][1:], (0, 1), value=1.0)[spread.own]
        own["weights"] = F.pad(weight[labelled], (1, 0), value=1.0)[None]
    own |= {name: columns[name][None, spread.own] for name in ("input_ids", "position_ids") if name in columns}
    rest = {name: value for name, value in batch.items() if name not in columns}
    return rest | own | {"layout": replace(layout, spread=spread), "keep_positions": F.pad(labelled, (0, 1))}


def own_answers(batch: Mapping[str, Any], team: Team) -> dict[str, Any]:
    """A micro-batch of answers with, for all ``answers``, those tokens of them that lie with this process."""
    if team.size == 1 or "answers" not in batch:
        return dict(batch)
    whole: AnswerTokens = batch["answers"]
    layout, moved = _of_enough(whole.layout, team.size)
    ids, before = whole.input_ids[0], whole.before[:-1]
    if moved is not None:
        ids, before = F.pad(ids, (0, len(moved) - len(ids)))[moved], moved.argsort()[before]
    spread = _spread(layout, team)
    here = ((before >= spread.own.start) & (before < spread.own.stop)).nonzero().squeeze(1)
    targets, places = whole.targets[0, 1:][here], before[here] - spread.own.start
    if not len(here):  # the head takes one place at least
        targets, places = targets.new_full((1,), -100), places.new_zeros(1)
    return dict(batch) | {
        "answers": AnswerTokens(
            ids[None, spread.own],
            replace(layout, spread=spread),
            F.pad(places, (0, 1)),
            F.pad(targets, (1, 0), value=-100)[None],
            whole.places[here],
            whole.shape,
        )
    }


_BLANK = {"labels": -100}


def _of_enough(layout: SequenceLayout, size: int) -> tuple[SequenceLayout, torch.Tensor | None]:
    """The layout with a token for each process, and, where some were added behind the others as a document of their
    own, the order they are in now."""
    missing = size - len(layout.positions)
    if missing <= 0:
        return layout, None
    return tree_layout([*layout.lengths, missing], [*layout.parents.tolist(), -1])


def _spread(layout: SequenceLayout, team: Team) -> Spread:
    return Spread.of(len(layout.positions), team.size, team.place, team.group)
