"""Supervised rows into the token store, with cuts and counts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hybrid_ft.finetune.data.messages.conversation import NOTHING_TO_LEARN, Conversation
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.reading import conversations
from hybrid_ft.finetune.data.report.account import CUT, Example, Part
from hybrid_ft.finetune.data.report.rows import RowCounts
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.token_store import TOKENS, TokenStore, Way
from hybrid_ft.finetune.data.tokens.encode import Encoded, encode
from hybrid_ft.finetune.data.tokens.encoder import Encoder

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Data
    from hybrid_ft.finetune.recipe.schema import Recipe

_LONG, _LONG_PROMPT = "longer than data.max_length", "prompt alone longer than data.max_length"
_SCHEMA = pa.schema(
    [
        ("input_ids", TOKENS),
        ("labels", TOKENS),
        ("origin", pa.string()),
        ("prompt_ids", TOKENS),
        ("answer", pa.string()),
    ]
)


def way_of_rows(data: Data, encoder: Encoder) -> Way[Conversation, Encoded]:
    """The way of a recipe's supervised rows."""
    fix = "Raise data.max_length, or set data.on_long_row: drop (or cut)"
    return Way(
        convert=conversations,
        encode=lambda rows: encode(rows, encoder.template, encoder.control, encoder.thoughts),
        fit=partial(_fit, data=data),
        stops=dict.fromkeys((_LONG, _LONG_PROMPT), fix) if data.on_long_row == "error" else {},
        bad_rows_stop=data.on_bad_row == "error",
        mentions=encoder.template.mentions,
        schema=_SCHEMA,
        trained_columns=("input_ids", "labels", "origin"),
    )


def _fit(row: Encoded, data: Data) -> tuple[Encoded, Mapping[str, int]]:
    """The row, cut from its end where it is too long and the recipe says so. Raises BadRow, Unusable."""
    if not row.turns:
        text = "the chat template marks none of the row's turns that are trained as the assistant's"
        raise BadRow(NOTHING_TO_LEARN, text)
    most, length = data.max_length, len(row.ids)
    if length > most:
        prompt = row.turns[0][0]
        if prompt >= most:
            raise Unusable(_LONG_PROMPT, f"the prompt alone has {prompt:,} tokens; data.max_length is {most:,}")
        if data.on_long_row != "cut":
            raise Unusable(_LONG, f"has {length:,} tokens; data.max_length is {most:,}")
        row.turns = [(first, min(last, most - 1)) for first, last in row.turns if first < most]
        row.ids = row.ids[:most]
    return row, row.happened() | {CUT: length > most}


def count_rows(store: TokenStore, rows: np.ndarray, packs: list[list[int]] | None, recipe: Recipe) -> RowCounts:
    """The counts of one split. ``rows``: its rows in the store."""
    return RowCounts.of(
        store.sizes("length", rows),
        int(store.sizes("trained", rows).sum()),
        store.texts[np.unique(rows)],
        packs,
        batch_size=recipe.train.batch_size,
        batch_tokens=recipe.train.batch_tokens,
    )


def row_example(row: dict[str, Any], encoder: Encoder) -> Example:
    """A row to look at, what is trained apart from the rest."""
    ids, labels = row["input_ids"], row["labels"]
    trained = [label != -100 for label in labels]
    edges = [0, *(at for at in range(1, len(ids)) if trained[at] != trained[at - 1]), len(ids)]
    parts = [
        Part(encoder.shown(ids[begin:end]), "trained" if trained[begin] else "context")
        for begin, end in pairwise(edges)
    ]
    return Example(str(row["origin"]), parts)
