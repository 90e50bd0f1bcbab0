"""Log-probabilities of given continuations: what several of them share is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional as F

from hybrid_ft.finetune.evaluation.batches import Budget, common_prefix, in_batches
from hybrid_ft.finetune.evaluation.items import Item
from hybrid_ft.hybrid_model.door.layout import tree_layout
from hybrid_ft.hybrid_model.families.known import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROWS_OF_LOGITS = 256
"""Places whose logits, [places, vocabulary] in float32, are held at once."""


class Branched(Protocol):
    """A prompt, and what is weighed after it; as in Item."""

    prompt: list[int]
    branches: list[list[int]]
    labels: list[int]


Token = tuple[float, bool]
"""Of a token its log-probability, and whether no other is likelier."""


def log_probs(
    model: PreTrainedModel, items: Sequence[Branched], budget: Budget, done: Sequence[bool] = ()
) -> Iterator[tuple[int, list[list[float]]]]:
    """The number of each item with the log-probabilities of its branches' tokens, as ``weighed`` has them."""
    for number, branches in weighed(model, items, budget, done):
        yield number, [[log_prob for log_prob, _ in branch] for branch in branches]


def weighed(
    model: PreTrainedModel, items: Sequence[Branched], budget: Budget, done: Sequence[bool] = ()
) -> Iterator[tuple[int, list[list[Token]]]]:
    """The number of each item with what its branches' tokens weigh; of an item of labels, its labelled tokens as one
    branch. Longest first, in batches; without those that are ``done`` [items], as ``in_batches`` has it.

    A batch is a tree of segments: the tokens that all its prompts begin with, the rest of each prompt, its branches.
    """
    sizes = [len(item.prompt) + sum(len(branch) - 1 for branch in item.branches) for item in items]
    shared = len(common_prefix([item.prompt for item in items])) if _forks(model) else 0
    return in_batches(
        [size - min(shared, len(item.prompt) - 1) for size, item in zip(sizes, items, strict=True)],
        budget,
        lambda rows: _of_batch(model, [items[row] for row in rows]),
        beside=shared,
        done=done,
    )


def _forks(model: PreTrainedModel) -> bool:
    return family_of(model.config).forks


def _of_batch(model: PreTrainedModel, items: Sequence[Branched]) -> list[list[list[Token]]]:
    tokens, lengths, parents, wanted = _tree(items, _forks(model))
    device = next(model.parameters()).device
    layout, order = tree_layout(lengths, parents, device)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=device)  # of a token, its place in the flat run
    flat = torch.tensor(tokens, device=device)[order][None]
    spots = place[torch.tensor([spot for spot, _ in wanted], device=device)]
    targets = torch.tensor([target for _, target in wanted], device=device)
    unique, row_of = spots.unique(return_inverse=True)
    keep = torch.zeros(1, len(order), dtype=torch.bool, device=device)
    keep[0, unique] = True
    with torch.inference_mode():
        hidden = model.base_model(input_ids=flat, layout=layout, keep_positions=keep, use_cache=False)
        found, likeliest = _gathered(model, hidden.last_hidden_state[0], row_of, targets)
    values = zip(found.tolist(), likeliest.tolist(), strict=True)
    return [[[next(values) for _ in range(count)] for count in _counts(item)] for item in items]


def _counts(item: Branched) -> list[int]:
    if item.labels:
        return [sum(label != -100 for label in item.labels[1:])]
    return [len(branch) for branch in item.branches]


def _tree(items: Sequence[Branched], forks: bool) -> tuple[list[int], list[int], list[int], list[tuple[int, int]]]:
    """Tokens, lengths and parents of segments, and for each wanted token the place that predicts it and the token."""
    tokens: list[int] = []
    lengths: list[int] = []
    parents: list[int] = []
    wanted: list[tuple[int, int]] = []

    def add(ids: list[int], parent: int) -> int:
        tokens.extend(ids)
        lengths.append(len(ids))
        parents.append(parent)
        return len(lengths) - 1

    prefix = common_prefix([item.prompt for item in items]) if forks and len(items) > 1 else []
    # each item keeps a token of its own, the one that predicts its branches' first
    prefix = prefix[: min(len(item.prompt) for item in items) - 1]
    root = add(prefix, -1) if prefix else -1
    for item in items:
        if item.labels:
            start = len(tokens)
            add(item.prompt[len(prefix) :], root)
            # the token before the first own one is the prefix's last
            for at, label in enumerate(item.labels[1:], start=1):
                if label != -100:
                    before = at - 1 - len(prefix)
                    wanted.append((start + before if before >= 0 else len(prefix) + before, label))
            continue
        if not forks:
            for branch in item.branches:
                start = len(tokens) + len(item.prompt) - 1
                add(item.prompt + branch[:-1], -1)
                wanted.extend((start + at, token) for at, token in enumerate(branch))
            continue
        stem = add(item.prompt[len(prefix) :], root)
        last = len(tokens) - 1
        for branch in item.branches:
            start = len(tokens)
            if len(branch) > 1:
                add(branch[:-1], stem)
            wanted.extend((last if at == 0 else start + at - 1, token) for at, token in enumerate(branch))
    return tokens, lengths, parents, wanted


def _gathered(
    model: Any, hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [M], bool [M]: log-probabilities of ``targets`` [M] at ``rows`` [M] of hidden states [U, D], and whether
    each is the likeliest token there."""
    head, prepared = model.get_output_embeddings(), family_of(model.config).head
    weight = None
    if prepared is not None:
        hidden, weight = prepared(model.config, hidden, head.weight)
    found = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    likeliest = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    for start in range(0, len(hidden), _ROWS_OF_LOGITS):
        part = hidden[start : start + _ROWS_OF_LOGITS]
        logits = (head(part) if weight is None else F.linear(part, weight)).float()
        inside = (rows >= start) & (rows < start + len(part))
        own = rows[inside] - start
        found[inside] = logits[own, targets[inside]] - logits.logsumexp(-1)[own]
        likeliest[inside] = logits.argmax(-1)[own] == targets[inside]
    return found, likeliest


def best_option(item: Item, values: list[list[float]], per_character: bool) -> int:
    """The option whose tokens are likeliest, as a whole or per character of its text; the first of equals."""
    sums = [sum(branch) for branch in values]
    if per_character:
        sums = [total / max(1, len(text)) for total, text in zip(sums, item.asked.options, strict=True)]
    return max(range(len(sums)), key=sums.__getitem__)
