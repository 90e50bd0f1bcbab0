"""Whether a step fits the GPU at hand, reckoned before the weights are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.machines.checkpointed_layers import left_out
from hybrid_ft.finetune.machines.empty_model import empty_model
from hybrid_ft.finetune.machines.memory import MARGIN, Batch, Memory, peak
from hybrid_ft.finetune.machines.shape import Shape, shape_of
from hybrid_ft.finetune.models import in_bfloat16
from hybrid_ft.finetune.runs import device
from hybrid_ft.finetune.runs.moments import moment_bytes
from hybrid_ft.finetune.runs.storage import size
from hybrid_ft.finetune.training.fsdp import pieces
from hybrid_ft.finetune.training.plan import a_step

if TYPE_CHECKING:
    from datasets import Dataset

    from hybrid_ft.finetune.recipe.schema import Recipe


Kept = frozenset[int]
"""numbers of layers that gradient checkpointing leaves out"""


def memory_line(
    recipe: Recipe, prepared: Any, processes: int, agreed: Callable[[Kept], Kept] = lambda kept: kept
) -> tuple[str, Kept]:
    """What a step needs on this GPU, in one line, and the layers that keep their activations.

    agreed   what all processes take of what each has the memory for
    Raises InputError, status 3, where a step cannot fit.
    """
    bfloat16 = in_bfloat16(recipe)
    shape = shape_of_recipe(recipe, bfloat16)
    team = recipe.train.sequence_parallel
    batch = batch_of(recipe, prepared, processes // team).over(team)
    sharded = bool(recipe.train.sharded)
    among = pieces(processes, recipe.train.sharded) if sharded else processes
    free, total = device.memory()
    kept = agreed(left_out(recipe, shape, batch, among, free))
    needed = peak(shape, batch, among, sharded, recipe.model.gradient_checkpointing, kept)
    line = f"memory    {said(needed)} of {size(free)} free"
    if recipe.model.checkpointed_layers is not None:
        count = len(shape.layers)
        line += f"; {count - len(kept)} of {count} layers are computed again"
    if needed.total * (1 - MARGIN) <= free or not recipe.train.check_memory:
        return line, kept
    raise InputError(
        f"{device.name()} has {size(free)} of {size(total)} free, and a step of {batch.tokens:,} tokens needs "
        f"{said(needed)}; hybrid-ft plan shows what would fit, train.check_memory: false tries it all the same",
        ENVIRONMENT,
    )


def kept_on_a_cpu(recipe: Recipe) -> Kept:
    """The same where no memory is reckoned: as many as the recipe says, and none by ``auto``."""
    if not isinstance(recipe.model.checkpointed_layers, int):
        return frozenset()
    return left_out(recipe, shape_of_recipe(recipe, in_bfloat16(recipe)), Batch(0, 0), 1, 0.0)


def held_line(model: Any, pieces: int, recipe: Recipe) -> str:
    """What is held between steps where no GPU is: a step's own share is not reckoned there."""
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    start, also = (gradients, " and those at the start") if recipe.keeps_start else (0, "")
    held = size((whole + gradients + moment_bytes(model, recipe.train.optimizer) + start) / pieces)
    return f"memory    {held} for weights{also}, gradients and moments, beside a step's own"


def said(memory: Memory) -> str:
    """``36.2 GB (weights 14.9, gradients 0.3, ...), most in the backward of layer 30 (delta rule)``."""
    parts = ", ".join(f"{name} {size(count)}" for name, count in memory.terms.items() if count >= 0.005 * memory.total)
    least = "" if memory.proven else "at least "
    rest = "" if memory.proven else "; what a layer takes for itself is not known for this family"
    return f"{least}{size(memory.total)} ({parts}), most in {memory.when}{rest}"


def shape_of_recipe(recipe: Recipe, bfloat16: bool) -> Shape:
    """Without weights. Raises InputError for a base whose config cannot be read."""
    model = empty_model(recipe, bfloat16)
    shape = shape_of(model, model.config, bfloat16, recipe.model.quantize, recipe.train.optimizer)
    return replace(shape, keeps_start=recipe.keeps_start)


def batch_of(recipe: Recipe, prepared: Any, teams: int = 1) -> Batch:
    """The largest micro-batch that the rows can make; every token of it may carry a label. ``teams`` share a step."""
    columns = token_columns(prepared.train)
    whole = np.sum([lengths(prepared.train, name) for name in columns], axis=0)
    if len(columns) > 1:
        count = recipe.pairs_or_rows or len(whole)
        if recipe.data.streaming:  # the rows are a sample: a step of the longest that are let in
            whole = np.full(count, min(2 * recipe.data.max_length, recipe.train.batch_tokens))
        batch = largest_of_pairs(whole, count, recipe.train.batch_tokens)
        return batch if recipe.reward is None else replace(batch, labelled=2 * batch.prompts)  # last tokens alone
    if recipe.data.streaming:  # the rows are a sample, and longer ones may come
        train = recipe.train
        tokens = train.batch_tokens if recipe.data.packing else train.batch_size * recipe.data.max_length
    elif prepared.packs is not None:
        tokens = max((int(whole[pack].sum()) for pack in prepared.packs), default=0)
    else:
        tokens = int(np.sort(whole)[-recipe.train.batch_size :].sum())
    return Batch(tokens, tokens, several=a_step(recipe) > teams)


def largest_of_pairs(whole: np.ndarray, pairs_per_step: int, batch_tokens: int) -> Batch:
    """``whole``: tokens [pairs]. A step's pairs fill micro-batches of at most ``batch_tokens``, or
    of one longer pair."""
    step = int(np.sort(whole)[-pairs_per_step:].sum())
    tokens = min(step, max(batch_tokens, int(whole.max(initial=0))))
    pairs = max(round(tokens / max(float(whole.mean()), 1.0)), 1) if len(whole) else 0
    return Batch(tokens, tokens, min(pairs, pairs_per_step), several=step > batch_tokens)


def rows_of_a_step(recipe: Recipe) -> int:
    """Pairs, or judged answers."""
    return recipe.pairs_or_rows or a_step(recipe)


def token_columns(rows: Dataset) -> list[str]:
    """``input_ids``, or the prompt and the answers that continue it."""
    names = rows.column_names
    return ["input_ids"] if "input_ids" in names else [name for name in names if name.endswith("_ids")]


def lengths(rows: Dataset, column: str) -> np.ndarray:
    """Of the lists in a column [rows], without reading them as Python's."""
    found = [pc.list_value_length(table[column]).to_numpy() for table in rows.with_format("arrow").iter(10_000)]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
