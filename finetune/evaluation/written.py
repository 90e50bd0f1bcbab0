"""Written answers: a beginning that prompts share is read once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicCache

from hybrid_ft.finetune.data.tokens.reasoning import BEGIN, END
from hybrid_ft.finetune.evaluation.batches import Budget, common_prefix, in_batches
from hybrid_ft.hybrid_model.door.cache import AttentionCache, DeltaCache

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hybrid_ft.finetune.generation.generate import Sampling

_WORTH_SHARING = 64
"""Tokens of a shared beginning from which on a copy of its states is cheaper than reading it again."""
_WORTH_LEAVING = 4
"""Rows that have ended from which on it is cheaper to go on without them."""
_READ = 4096
"""Tokens of prompts that are read at once. A step costs as much for few rows as for many, so that many go together."""
_KEPT = 4
"""Tokens of which keys and values may be kept for each that a batch may read: they take far less room."""


def write_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    end_ids: list[int],
    max_new_tokens: int,
    sampling: Sampling,
    budget: Budget,
    stop: Sequence[str] = (),
    done: Sequence[bool] = (),
) -> Iterator[tuple[int, tuple[str, int]]]:
    """The number of each prompt with the text that follows it and how many tokens that has; longest first, in batches.

    ``stop``: texts at which an answer may end; they, and what the last token has beyond them, stand in it. ``done``
    [prompts]: which have an answer already, as ``in_batches`` has it.
    """
    if all(done) if done else not prompts:
        return iter(())
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end_ids or [0])[0]
    config = sampling.config(end_ids, pad, max_new_tokens)
    prefix = common_prefix(prompts)[: min(map(len, prompts)) - 1]
    if len(prompts) < 2 or len(prefix) < _WORTH_SHARING:
        prefix = []
    states = _states_of(model, prefix or prompts[0][:1])
    if states is None:
        prefix = []
    elif not prefix:
        states = DynamicCache()
    stops = _Stops(tokenizer, [text for text in stop if text], set(end_ids))
    text_of = _decoder(tokenizer)

    def work(rows: list[int]) -> list[tuple[str, int]]:
        if sampling.temperature:
            torch.manual_seed(sampling.seed + rows[0])
        rests = [prompts[row][len(prefix) :] for row in rows]
        new = _continue(model, prefix, states, rests, config, stops, min(_READ, budget.tokens))
        return [(text_of(ids), len(ids)) for ids in new]

    sizes = [len(prompt) + max_new_tokens for prompt in prompts]
    return in_batches(sizes, budget, work, padded=True, done=done, room=1 if states is None else _KEPT)


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """Tokens as text without special ones, but with a thought's tags, which are among them in some tokenizers."""
    special = {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    if not {BEGIN, END} & set(special.values()):
        return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))
    hidden = {id for id, content in special.items() if content not in (BEGIN, END)}
    return lambda ids: str(tokenizer.decode([id for id in ids if id not in hidden]))


class _Stops:
    """Where answers end: at one of some texts, or of some tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], ends: set[int]) -> None:
        self.tokenizer, self.texts, self.ends = tokenizer, texts, ends
        # a token has a byte at least; one more, of which a text may be the end
        self.reach = max((len(text.encode()) for text in texts), default=0) + 1

    def at(self, new: list[int]) -> bool:
        """Whether an answer ends with the last of its new tokens."""
        if new[-1] in self.ends:
            return True
        if not self.texts:
            return False
        tail = str(self.tokenizer.decode(new[-self.reach :], skip_special_tokens=True))
        return any(text in tail for text in self.texts)


class _Ended(StoppingCriteria):
    """Ends each row where its new tokens do; with ``shrinks`` all of them once half have ended, so that the rest can go
    on alone. transformers' own looks for texts at the prompt's end as well."""

    def __init__(self, stops: _Stops, beyond: int, rows: int, shrinks: bool) -> None:
        self.stops, self.beyond, self.shrinks = stops, beyond, shrinks
        self.ends: list[int | None] = [None] * rows
        """After how many tokens each row has ended."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        count = input_ids.shape[1] - self.beyond
        for row, new in enumerate(input_ids[:, self.beyond :][:, -self.stops.reach :].tolist()):
            if self.ends[row] is None and self.stops.at(new):
                self.ends[row] = count
        rows, going = len(self.ends), self.ends.count(None)
        leave = self.shrinks and going <= rows // 2 <= rows - _WORTH_LEAVING
        return torch.tensor([leave or end is not None for end in self.ends], device=input_ids.device)


def _states_of(model: Any, prefix: list[int]) -> DynamicCache | None:
    """The cache after a prefix, of one row; None for a model whose caches are not this project's, which alone can be
    continued exactly with rows padded between."""
    with torch.inference_mode():
        ids = torch.tensor([prefix], device=next(model.parameters()).device)
        # without a cache given: transformers' own mixers need one that is made of the config
        cache = model.base_model(input_ids=ids, use_cache=True).past_key_values
    layers = getattr(cache, "layers", [])
    ours = bool(layers) and all(isinstance(layer, AttentionCache | DeltaCache) for layer in layers)
    return cache if ours else None


def _read(
    model: Any, states: DynamicCache, shared: int, ids: torch.Tensor, mask: torch.Tensor, at_once: int
) -> DynamicCache:
    """The cache of rows [B, T], padded before their own tokens, after all columns but the last.

    ``states``: after the first ``shared`` columns, of one row. Rows are read in pieces of about ``at_once`` tokens.
    """
    sizes = mask[:, shared:-1].sum(1).tolist()
    pieces, first, total = [], 0, 0
    for row, size in enumerate(sizes):
        if row > first and size and total + size > at_once:  # each piece has something to read
            pieces.append((first, row))
            first, total = row, 0
        total += size
    read = []
    for start, end in (*pieces, (first, len(sizes))):
        cache = copy.deepcopy(states)
        if shared:
            cache.batch_repeat_interleave(end - start)
        if shared < ids.shape[1] - 1:
            with torch.inference_mode():
                part = slice(start, end)
                own = {"input_ids": ids[part, shared:-1], "attention_mask": mask[part, :-1]}
                model.base_model(**own, past_key_values=cache, use_cache=True)
        read.append(cache)
    for number, layer in enumerate(read[0].layers):
        if len(read) > 1:
            layer.add_rows([cache.layers[number] for cache in read[1:]])
    return read[0]


def _continue(
    model: Any,
    prefix: list[int],
    states: DynamicCache | None,
    rests: list[list[int]],
    config: GenerationConfig,
    stops: _Stops,
    at_once: int,
) -> list[list[int]]:
    """The new tokens of each prompt, without the end token and what comes after it.

    ``states``: the cache after ``prefix``, of one row, empty without one; None for a model whose caches are not this
    project's. ``at_once``: tokens of prompts that are read together. Rows that have ended leave the batch.
    """
    longest = max(map(len, rests))
    device, pad = next(model.parameters()).device, config.pad_token_id
    begin, most = len(prefix) + longest, config.max_new_tokens
    ids = torch.tensor([prefix + [pad] * (longest - len(rest)) + rest for rest in rests], device=device)
    mask = torch.ones_like(ids)
    for row, rest in enumerate(rests):
        mask[row, len(prefix) : begin - len(rest)] = 0
    past: dict[str, Any] = {}
    if states is not None:
        past["past_key_values"] = own = _read(model, states, len(prefix), ids, mask, at_once)
    new: list[list[int]] = [[] for _ in rests]
    rows = list(range(len(rests)))
    with torch.inference_mode():
        while True:
            config = copy.copy(config)  # the next batch starts from its own
            config.max_new_tokens = most - (ids.shape[1] - begin)
            ended = _Ended(stops, begin, len(rows), states is not None)
            ids = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([ended]),
                **past,
            )
            for row, tokens, end in zip(rows, ids[:, begin:].tolist(), ended.ends, strict=True):
                new[row] = tokens[:end]
            going = [at for at, end in enumerate(ended.ends) if end is None]
            if not going or ids.shape[1] - begin >= most:
                break
            rows = [rows[at] for at in going]
            kept = torch.tensor(going, device=device)
            own.batch_select_indices(kept)
            ids = ids[kept]
            mask = torch.cat((mask[kept], mask.new_ones(len(rows), ids.shape[1] - mask.shape[1])), dim=1)
    return [tokens[:-1] if tokens and tokens[-1] in stops.ends else tokens for tokens in new]
