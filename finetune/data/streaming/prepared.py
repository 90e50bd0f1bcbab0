"""A stream's data as a run begins with it: a sample, held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data import prepare as whole
from hybrid_ft.finetune.data.decontaminate import decontaminated
from hybrid_ft.finetune.data.packing import pack
from hybrid_ft.finetune.data.preference_pairs import pair_example, pairs_counted, way_of_pairs
from hybrid_ft.finetune.data.report.account import Account, SourceCounts, SplitCounts, refusal, rows_to_show
from hybrid_ft.finetune.data.report.rows import RowCounts
from hybrid_ft.finetune.data.scratch import Scratch
from hybrid_ft.finetune.data.streaming.held_out import as_dataset, held_out_rows, rows_of_their_own
from hybrid_ft.finetune.data.streaming.windows import RowStream
from hybrid_ft.finetune.data.supervised import row_example, way_of_rows
from hybrid_ft.finetune.data.tokens.encoder import NO_TEMPLATE, Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe.schema import Recipe

SAMPLE = 2_000
"""Rows of the stream that are looked at before a run."""


@dataclass
class StreamPrepared(whole.Prepared):
    """As ``Prepared``, of which ``train``, ``packs`` and ``report`` are a sample: the stream's first rows.

    ``open`` gives the stream from its beginning; ``endless``: no pass of it ends. ``files``: those that are here.
    """

    open: Callable[[], RowStream]
    files: list[str]
    endless: bool


def prepare(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, refuse: bool = True) -> whole.Prepared:
    """As ``data.prepare.prepare``; of a stream a sample."""
    if not recipe.data.streaming:
        return whole.prepare(recipe, tokenizer, refuse=refuse)
    data, encoder = recipe.data, Encoder.of(recipe, tokenizer)
    texts, pairs = recipe.model.chat_template is None, recipe.of_pairs is not None
    every = way_of_pairs(recipe, recipe.of_pairs, encoder) if pairs else way_of_rows(data, encoder, texts)
    way = decontaminated(every, recipe)
    stream = RowStream(recipe, way, texts, min(data.shuffle_buffer, SAMPLE))
    window = next(stream.windows(judged=False))
    counts = [source.counts for source in stream.sources]
    stop = refusal(counts, data.max_dropped, "data.sources")
    if stop and refuse:
        raise InputError(f"{stop} (of the stream's first rows)")
    numbers = np.array(window.sources)
    order = np.argsort(numbers, kind="stable")
    rows = [window.rows[row] for row in order]
    train = as_dataset(
        [row.columns() for row in rows], pa.schema([way.schema.field(name) for name in way.trained_columns])
    )
    place = {int(row): at for at, row in enumerate(order)}
    packed = data.packing and not pairs
    packs = [[place[row] for row in one] for one in window.packs] if packed else None
    held: Dataset | None = None
    of_held: list[SourceCounts] = []
    if data.eval.fraction:
        held = held_out_rows(recipe, way, texts)
    elif data.eval.sources:
        held, of_held = rows_of_their_own(recipe, every, texts)
    held_packs: list[list[int]] | None = None
    if held is not None and packed:
        held_packs = pack([len(ids) for ids in held["input_ids"]], recipe.train.batch_tokens, data.seed)
    example = pair_example if pairs else row_example
    read = sum(count.read for count in counts)
    account = Account(
        template=encoder.template.name,
        max_length=data.max_length,
        sources=counts,
        eval_sources=of_held,
        train=_counted(recipe, train, packs),
        eval=None if held is None else _counted(recipe, held, held_packs),
        examples=[example(train[row], encoder) for row in rows_to_show(numbers[order])],
        refusal=stop,
        sample=f"a sample, the first {read:,} rows of a stream; the rest is read, and counted, as it is trained on",
    )
    text = encoder.template.text if encoder.template.name != NO_TEMPLATE else None
    folder = Scratch()
    return StreamPrepared(
        *(train, held, packs, held_packs, account, encoder.eos_token_ids, text, encoder.template.arguments, folder),
        open=partial(RowStream, recipe, way, texts),
        files=[file for source in stream.sources for file in source.files],
        endless=stream.endless,
    )


def _counted(recipe: Recipe, rows: Dataset, packs: list[list[int]] | None) -> SplitCounts:
    if recipe.of_pairs is not None:
        return pairs_counted(rows, recipe)
    ids, labels = rows["input_ids"], rows["labels"]
    texts = np.array([hash(tuple(one)) for one in ids])
    return RowCounts.of(
        np.array([len(one) for one in ids], dtype=np.int64),
        sum(label != -100 for one in labels for label in one),
        texts,
        packs,
        batch_size=recipe.train.batch_size,
        batch_tokens=recipe.train.batch_tokens,
    )
