"""Written answers: a beginning that prompts share is read once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache

from hybrid_ft.finetune.evaluation.batches import Budget, common_prefix, in_batches
from hybrid_ft.hybrid_model.door.cache import AttentionCache, DeltaCache

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hybrid_ft.finetune.generation.generate import Sampling

_WORTH_SHARING = 64
"""Tokens of a shared beginning from which on a copy of its states is cheaper than reading it again."""


def write_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    end_ids: list[int],
    max_new_tokens: int,
    sampling: Sampling,
    budget: Budget,
) -> Iterator[tuple[int, tuple[str, int]]]:
    """The number of each prompt with the text that follows it and how many tokens that has; longest first, in batches."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end_ids or [0])[0]
    config = sampling.config(end_ids, pad, max_new_tokens)
    prefix = common_prefix(prompts)[: min(map(len, prompts), default=1) - 1]
    states = _states_of(model, prefix) if len(prompts) > 1 and len(prefix) >= _WORTH_SHARING else None
    if states is None:
        prefix = []

    def work(rows: list[int]) -> list[tuple[str, int]]:
        if sampling.temperature:
            torch.manual_seed(sampling.seed + rows[0])
        new = _continue(model, prefix, states, [prompts[row][len(prefix) :] for row in rows], config)
        return [(str(tokenizer.decode(ids, skip_special_tokens=True)), len(ids)) for ids in new]

    sizes = [len(prompt) + max_new_tokens for prompt in prompts]
    return in_batches(sizes, budget, work, padded=True)


def _states_of(model: Any, prefix: list[int]) -> DynamicCache | None:
    """The cache after a prefix, of one row; None for a model whose caches are not this project's, which alone can be
    continued exactly with rows padded between."""
    cache = DynamicCache()
    with torch.inference_mode():
        ids = torch.tensor([prefix], device=next(model.parameters()).device)
        out = model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    cache = out.past_key_values
    ours = all(isinstance(layer, AttentionCache | DeltaCache) for layer in cache.layers)
    return cache if ours else None


def _continue(
    model: Any, prefix: list[int], states: DynamicCache | None, rests: list[list[int]], config: GenerationConfig
) -> list[list[int]]:
    """The new tokens of each prompt, without the end token and what comes after it."""
    longest = max(map(len, rests))
    device, pad = next(model.parameters()).device, config.pad_token_id
    ids = [prefix + [pad] * (longest - len(rest)) + rest for rest in rests]
    mask = [[1] * len(prefix) + [0] * (longest - len(rest)) + [1] * len(rest) for rest in rests]
    past: dict[str, Any] = {}
    if states is not None:
        past["past_key_values"] = own = copy.deepcopy(states)
        own.batch_repeat_interleave(len(rests))
    with torch.inference_mode():
        out = model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=config,
            **past,
        )
    ends = set(config.eos_token_id or ())
    return [list(itertools.takewhile(lambda token: token not in ends, row)) for row in out[:, len(ids[0]) :].tolist()]
