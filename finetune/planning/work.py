"""What a recipe computes: rows, tokens, operations, steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.machines.memory import Batch
from hybrid_ft.finetune.training.memory_check import batch_of, lengths, rows_of_a_step, token_columns
from hybrid_ft.finetune.training.plan import Plan, a_step
from hybrid_ft.hybrid_model.families.known import family_of
from hybrid_ft.hybrid_model.flops import forward_flops, training_flops

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from hybrid_ft.finetune.recipe.schema import Recipe

_SAMPLE = 20_000
"""rows whose operations are counted; the rest are taken to be like them"""
_TRAINED = 0.5
"""share of the tokens that carry a label, where it is not known: the head is 5 % of the operations"""


@dataclass(frozen=True)
class Work:
    """One epoch. ``operations``: those that count as use of a GPU; ``again``: those of recomputing every layer.

    tokens, steps   None where neither the rows nor the recipe say them
    micro_batches   of a step, over all processes
    dealt           what a step's work is dealt out in: its micro-batches, or its pairs or judged answers
    ``batch`` is the largest micro-batch; ``typical``: lengths of the rows in one as they mostly are.
    exchanged       bytes a token that go to other heads and come back, in all layers, where processes share its row
    ``source`` says where the figures are from, ``rows`` what they come to.
    """

    batch: Batch
    tokens: int | None
    epochs: float
    steps: int | None
    micro_batches: int
    dealt: int
    operations: float
    again: float
    source: str
    rows: str
    typical: tuple[int, ...]
    exchanged: int = 0


def read_rows(recipe: Recipe) -> tuple[Any | None, str]:
    """The recipe's rows, packed, or None and why they are not read: they lie on the hub, or their tokenizer does.

    Raises InputError for rows that are here and cannot be used.
    """
    from hybrid_ft.finetune import models
    from hybrid_ft.finetune.data.streaming.prepared import prepare
    from hybrid_ft.hybrid_model.families.presets import PRESETS, TINY

    away = next((source.path for source in recipe.data.sources if not _is_here(source.path)), None)
    if away is not None:
        return None, f"{away} is not on this machine"
    if recipe.model.path in PRESETS and recipe.model.path != TINY and not recipe.model.tokenizer:
        return None, f"model.path: {recipe.model.path} has no tokenizer; set model.tokenizer"
    try:
        tokenizer = models.load_tokenizer(recipe)
    except InputError as error:
        if error.status != ENVIRONMENT:
            raise
        return None, "the tokenizer is not on this machine"
    return prepare(recipe, tokenizer), ""


def _is_here(path: str) -> bool:
    from pathlib import Path

    return Path(path).expanduser().is_file()


def work_of(
    recipe: Recipe, config: PreTrainedConfig, prepared: Any | None, why: str, tokens: int | None, teams: int
) -> Work:
    """``tokens``: of an epoch, where the user says them and the rows are not here."""
    frozen = recipe.model.lora is not None
    if prepared is None:
        return _told(recipe, config, why, tokens, frozen, teams)
    parts = [lengths(prepared.train, name) for name in token_columns(prepared.train)]
    pairs = len(parts) > 1
    whole = np.sum(parts, axis=0)
    total = int(whole.sum())
    taken = np.linspace(0, len(whole) - 1, min(len(whole), _SAMPLE)).astype(int)
    segments = [int(part[row]) for row in taken for part in parts]
    first = len(parts) * np.arange(len(taken))
    parents = [parent for n in first for parent in (-1, *[int(n)] * (len(parts) - 1))] if pairs else None
    share = 1 - parts[0].sum() / total if pairs else prepared.report.train.trained_share
    labelled = 0 if recipe.reward else round(sum(segments) * float(share))
    scale = total / max(sum(segments), 1)
    # a row alone: its pairs of query and key do not reach into its neighbours
    operations = _count(training_flops, config, segments, parents, labelled, frozen) * scale
    again = _count(_layers_forward, config, segments, parents, labelled, frozen) * scale
    if _goes_twice(recipe):
        operations += again
    if pairs:
        count = len(whole)
        if recipe.data.streaming:  # the rows are a sample, and what a pass has is what the run takes
            count = (recipe.train.steps or 1) * rows_of_a_step(recipe)
            more = count / max(len(whole), 1)
            total, operations, again = round(total * more), operations * more, again * more
        plan = Plan.of(recipe, count, rows_of_a_step(recipe))
        batch = batch_of(recipe, prepared, teams)
        micro = max(math.ceil(total / plan.per_epoch / max(batch.tokens, 1)), 1)
        what, once = "pairs" if recipe.of_pairs else "answers", "a shared prompt counted once"
        rows = f"{len(whole):,} {what}, {total:,} tokens an epoch, {once}"
        if recipe.data.streaming:
            rows = f"a stream, by a sample of {len(whole):,} {what}: {total:,} tokens in all, {once}"
    else:
        portions = (
            len(prepared.packs) if prepared.packs is not None else math.ceil(len(whole) / recipe.train.batch_size)
        )
        if recipe.data.streaming:  # the rows are a sample, and what a pass has is what the run takes
            more = (recipe.train.steps or 1) * a_step(recipe) / portions
            total, operations, again = round(total * more), operations * more, again * more
            portions = round(portions * more)
        plan, micro = Plan.of(recipe, portions, a_step(recipe)), a_step(recipe)
        batch = batch_of(recipe, prepared, teams)
        packed = f" in {portions:,} packs of at most {batch.tokens:,}" if prepared.packs is not None else ""
        rows = f"{len(whole):,} rows, {total:,} tokens an epoch{packed}"
        if recipe.data.streaming:
            rows = f"a stream, by a sample of {len(whole):,} rows: {total:,} tokens in all{packed}"
    epochs = plan.steps / plan.per_epoch
    typical = _typical(whole, None if pairs else prepared.packs, total / micro / plan.per_epoch)
    exchanged = _exchanged(config)
    dealt = rows_of_a_step(recipe) if pairs else micro
    return Work(batch, total, epochs, plan.steps, micro, dealt, operations, again, "the rows", rows, typical, exchanged)


def _goes_twice(recipe: Recipe) -> bool:
    """Whether each step has one more forward: of every answer after another prompt, for the KL term, or of a stream's
    pairs by their reference."""
    return recipe.keeps_start or (recipe.kto is not None and recipe.kto.has_kl)


def _typical(whole: np.ndarray, packs: list[list[int]] | None, tokens: float) -> tuple[int, ...]:
    """Lengths of the rows of the micro-batch that is nearest to the mean of ``tokens``."""
    if packs:
        sums = np.array([whole[pack].sum() for pack in packs])
        return tuple(int(n) for n in whole[packs[int(np.abs(sums - tokens).argmin())]])
    middle = max(int(np.median(whole)), 1)
    return (middle,) * max(round(tokens / middle), 1)


def _told(recipe: Recipe, config: PreTrainedConfig, why: str, tokens: int | None, frozen: bool, teams: int) -> Work:
    """Without rows: full micro-batches of rows as long as they may be."""
    train, longest = recipe.train, recipe.data.max_length
    pairs = recipe.stage != "sft"
    if pairs:
        full, micro = max(train.batch_tokens, longest), 2
    elif recipe.data.packing:
        full, micro = train.batch_tokens, a_step(recipe)
    else:
        full, micro = train.batch_size * longest, a_step(recipe)
    prompts = full // longest if pairs else 0
    batch = Batch(full, 2 * prompts if recipe.reward else full, prompts, several=micro > teams)
    step_tokens = None if pairs else full * micro
    steps = train.steps
    if tokens is not None and step_tokens is not None and steps is None:
        steps = math.ceil(train.epochs * math.ceil(tokens / step_tokens))
    epochs = train.epochs
    if steps is not None and step_tokens is not None and tokens is None:
        tokens, epochs = steps * step_tokens, 1.0
    elif train.steps is not None and step_tokens is not None and tokens is not None:
        epochs = train.steps / math.ceil(tokens / step_tokens)
    of_rows = min(longest, full)
    segments = [of_rows]
    labelled = 0 if recipe.reward else round(of_rows * _TRAINED)
    scale = (tokens or 0) / of_rows
    operations = _count(training_flops, config, segments, None, labelled, frozen) * scale
    again = _count(_layers_forward, config, segments, None, labelled, frozen) * scale
    if _goes_twice(recipe):
        operations += again
    said = f"{tokens:,} tokens; " if tokens else ""
    rows = f"{said}rows taken to be {of_rows:,} tokens long, as data.max_length allows, and micro-batches full"
    typical = (of_rows,) * max(full // of_rows, 1)
    dealt = rows_of_a_step(recipe) if pairs else micro
    return Work(batch, tokens, epochs, steps, micro, dealt, operations, again, why, rows, typical, _exchanged(config))


def _exchanged(config: Any) -> int:
    """Bytes a token, in all layers."""
    return 2 * sum(mixing.exchanged for layer in family_of(config).mixings(config) for mixing in layer)


def _count(how: Any, config: Any, segments: list[int], parents: list[int] | None, labelled: int, frozen: bool) -> float:
    return float(how(config, segments, parents, labelled, frozen))


def _layers_forward(config: Any, segments: list[int], parents: list[int] | None, labelled: int, frozen: bool) -> int:
    """What checkpointing computes twice: everything but the head."""
    flops = forward_flops(config, segments, parents, labelled)
    return flops.total - flops.head
