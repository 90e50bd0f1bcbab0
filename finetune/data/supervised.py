"""Supervised rows into the token store, with cuts and counts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hybrid_ft.finetune.data.messages.conversation import NOTHING_TO_LEARN, Conversation
from hybrid_ft.finetune.data.messages.plain_text import PlainText
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.reading import conversations
from hybrid_ft.finetune.data.report.account import CUT, IN_PIECES, Example, Part
from hybrid_ft.finetune.data.report.rows import RowCounts
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.token_store import TokenStore
from hybrid_ft.finetune.data.tokens.encode import Encoded, encode
from hybrid_ft.finetune.data.tokens.encoder import Encoder
from hybrid_ft.finetune.data.tokens.texts import EncodedText, encode_texts
from hybrid_ft.finetune.data.way import TOKENS, WEIGHTS, Way

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Data
    from hybrid_ft.finetune.recipe.schema import Recipe

_LONG, _LONG_PROMPT = "longer than data.max_length", "prompt alone longer than data.max_length"
_LONG_TEXT = "text longer than data.max_length, which data.on_long_row: split takes in pieces"
_SCHEMA = pa.schema(
    [
        ("input_ids", TOKENS),
        ("labels", TOKENS),
        ("weights", WEIGHTS),
        ("origin", pa.string()),
        ("prompt_ids", TOKENS),
        ("answer", pa.string()),
    ]
)


def way_of_rows(
    data: Data, encoder: Encoder, texts: bool = True
) -> Way[Conversation | PlainText, Encoded | EncodedText]:
    """The way of a recipe's supervised rows. ``texts``: whether rows may be plain text without
    the source's saying so."""
    fix = "Raise data.max_length, or set data.on_long_row: drop (or cut)"
    return Way(
        convert=partial(conversations, texts=texts),
        encode=partial(_encoded, encoder=encoder),
        fit=partial(_fit, data=data),
        stops=dict.fromkeys((_LONG, _LONG_PROMPT, _LONG_TEXT), fix) if data.on_long_row == "error" else {},
        bad_rows_stop=data.on_bad_row == "error",
        mentions=encoder.template.mentions,
        schema=_SCHEMA,
        trained_columns=("input_ids", "labels", "weights", "origin"),
        one_each=lambda _: data.on_long_row != "split",
    )


def _encoded(rows: list[Conversation | PlainText], encoder: Encoder) -> list[Encoded | EncodedText | BadRow]:
    """Rows of both kinds in tokens, in their order; fewer where the template had to be stopped."""
    texts = [row for row in rows if isinstance(row, PlainText)]
    chats = [row for row in rows if isinstance(row, Conversation)]
    of_texts = iter(encode_texts(texts, encoder.tokenizer, encoder.control) if texts else [])
    of_chats = iter(encode(chats, encoder.template, encoder.control, encoder.thoughts) if chats else [])
    made: list[Encoded | EncodedText | BadRow] = []
    for row in rows:
        tokens = next(of_texts if isinstance(row, PlainText) else of_chats, None)
        if tokens is None:
            break
        made.append(tokens)
    return made


def _fit_text(text: EncodedText, data: Data) -> tuple[list[EncodedText], Mapping[str, int]]:
    """A text, in pieces or without its end where it is too long and the recipe says so. Raises Unusable."""
    most, length = data.max_length, len(text.ids)
    if length <= most:
        return [text], {}
    if data.on_long_row == "split":
        return text.pieces(most), {IN_PIECES: 1}
    if data.on_long_row == "cut":
        return [EncodedText(text.ids[:most], text.control_tokens_as_text)], {CUT: 1}
    raise Unusable(_LONG_TEXT, f"the text has {length:,} tokens; data.max_length is {most:,}")


def _fit(row: Encoded | EncodedText, data: Data) -> tuple[Encoded | EncodedText | list[EncodedText], Mapping[str, int]]:
    """The row, cut from its end where it is too long and the recipe says so. Raises BadRow, Unusable."""
    if isinstance(row, EncodedText):
        return _fit_text(row, data)
    if not row.turns:
        text = "the chat template marks none of the row's turns that are trained as the assistant's"
        raise BadRow(NOTHING_TO_LEARN, text)
    most, length = data.max_length, len(row.tokens)
    if length > most:
        prompt = row.turns[0][0]
        if prompt >= most:
            raise Unusable(_LONG_PROMPT, f"the prompt alone has {prompt:,} tokens; data.max_length is {most:,}")
        if data.on_long_row != "cut":
            raise Unusable(_LONG, f"has {length:,} tokens; data.max_length is {most:,}")
        row.turns = [(first, min(last, most - 1)) for first, last in row.turns if first < most]
        row.tokens = row.tokens[:most]
        row.weights = row.weights and row.weights[:most]
        if not row.sizes()["trained"]:
            raise Unusable(
                _LONG, f"has {length:,} tokens, none of the first {most:,} trained; data.max_length is {most:,}"
            )
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
