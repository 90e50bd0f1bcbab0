"""Written answers: a beginning that prompts share is read once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
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
    stop: Sequence[str] = (),
) -> Iterator[tuple[int, tuple[str, int]]]:
    """The number of each prompt with the text that follows it and how many tokens that has; longest first, in batches.

    ``stop``: texts at which an answer may end; they, and what the last token has beyond them, stand in it.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end_ids or [0])[0]
    config = sampling.config(end_ids, pad, max_new_tokens)
    prefix = common_prefix(prompts)[: min(map(len, prompts), default=1) - 1]
    states = _states_of(model, prefix) if len(prompts) > 1 and len(prefix) >= _WORTH_SHARING else None
    if states is None:
        prefix = []
    texts = [text for text in stop if text]

    def ended(beyond: int) -> StoppingCriteriaList | None:
        return StoppingCriteriaList([_AtText(tokenizer, texts, beyond)]) if texts else None

    def work(rows: list[int]) -> list[tuple[str, int]]:
        if sampling.temperature:
            torch.manual_seed(sampling.seed + rows[0])
        new = _continue(model, prefix, states, [prompts[row][len(prefix) :] for row in rows], config, ended)
        return [(str(tokenizer.decode(ids, skip_special_tokens=True)), len(ids)) for ids in new]

    sizes = [len(prompt) + max_new_tokens for prompt in prompts]
    return in_batches(sizes, budget, work, padded=True)


class _AtText(StoppingCriteria):
    """Ends each row where its new tokens hold one of some texts. transformers' own looks at the prompt's end as well."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], beyond: int) -> None:
        self.tokenizer, self.texts, self.beyond = tokenizer, texts, beyond
        # a token has a byte at least; one more, of which a text may be the end
        self.reach = max(len(text.encode()) for text in texts) + 1
        self.done: list[bool] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        new = input_ids[:, self.beyond :][:, -self.reach :].tolist()
        self.done = self.done or [False] * len(new)
        for row, ids in enumerate(new):
            if not self.done[row]:
                tail = str(self.tokenizer.decode(ids, skip_special_tokens=True))
                self.done[row] = any(text in tail for text in self.texts)
        return torch.tensor(self.done, device=input_ids.device)


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
    model: Any,
    prefix: list[int],
    states: DynamicCache | None,
    rests: list[list[int]],
    config: GenerationConfig,
    ended: Callable[[int], StoppingCriteriaList | None],
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
            stopping_criteria=ended(len(ids[0])),
            **past,
        )
    # a row that has ended at a text is filled up with padding
    ends = {*(config.eos_token_id or ()), pad}
    return [list(itertools.takewhile(lambda token: token not in ends, row)) for row in out[:, len(ids[0]) :].tolist()]
