"""Preference pairs into the token store, with their counts and refusals."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hybrid_ft.finetune.data.messages.preference import Preference
from hybrid_ft.finetune.data.reading import pair_each, preferences
from hybrid_ft.finetune.data.report.account import CUT, CUT_PROMPT, Example, Part
from hybrid_ft.finetune.data.report.pairs import PairCounts
from hybrid_ft.finetune.data.token_store import TokenStore
from hybrid_ft.finetune.data.tokens.encode_pairs import TokenPair, encode_pairs
from hybrid_ft.finetune.data.tokens.encoder import Encoder
from hybrid_ft.finetune.data.tokens.fit_pairs import (
    NOTHING_LEFT,
    OVER_BUDGET,
    PAIR_TOO_LONG,
    PROMPT_TOO_LONG,
    Limits,
    fit,
)
from hybrid_ft.finetune.data.way import TOKENS, Way

if TYPE_CHECKING:
    from datasets import Dataset

    from hybrid_ft.finetune.recipe.preference_section import Reward
    from hybrid_ft.finetune.recipe.schema import Dpo, Recipe

_PARTS = ("prompt", "chosen", "rejected")
_SCHEMA = pa.schema([*((f"{part}_ids", TOKENS) for part in _PARTS), ("origin", pa.string())])


def way_of_pairs(recipe: Recipe, section: Dpo | Reward, encoder: Encoder) -> Way[Preference, TokenPair]:
    """The way of a recipe's pairs; to a reward model they bring margins."""
    limits = Limits(
        max_length=recipe.data.max_length,
        batch_tokens=recipe.train.batch_tokens,
        on_long_prompt=section.on_long_prompt,
        on_long_row=recipe.data.on_long_row,
        header=encoder.header_tokens(),
    )
    schema = _SCHEMA if recipe.reward is None else _SCHEMA.append(pa.field("margin", pa.float32()))
    return Way(
        convert=partial(preferences, margins=recipe.reward is not None),
        encode=lambda pairs: encode_pairs(pairs, encoder.template, encoder.control, encoder.thoughts),
        fit=partial(_fit, limits=limits),
        stops=_stops(limits, recipe.stage),
        bad_rows_stop=recipe.data.on_bad_row == "error",
        mentions=encoder.template.mentions,
        schema=schema,
        trained_columns=tuple(schema.names),
        one_each=pair_each,
    )


def _stops(limits: Limits, stage: str) -> dict[str, str]:
    stops = {}
    if limits.on_long_prompt == "error":
        fix = f"Raise data.max_length, or set {stage}.on_long_prompt: drop (or cut_start)"
        stops = {PROMPT_TOO_LONG: fix, NOTHING_LEFT: fix}
    if limits.on_long_row == "error":
        stops[PAIR_TOO_LONG] = "Raise data.max_length, or set data.on_long_row: drop (or cut)"
        stops[OVER_BUDGET] = "Raise train.batch_tokens, or set data.on_long_row: drop"
    return stops


def _fit(pair: TokenPair, limits: Limits) -> tuple[TokenPair, Mapping[str, int]]:
    fitted = fit(pair, limits)
    cut = {CUT_PROMPT: bool(fitted.cut_prompt), CUT: bool(fitted.cut_answers)}
    return fitted.pair, pair.happened() | cut


def count_pairs(store: TokenStore, rows: np.ndarray, packs: list[list[int]] | None, recipe: Recipe) -> PairCounts:
    """The counts of one split. ``rows``: its pairs in the store."""
    prompt, chosen, rejected = (store.sizes(part, rows) for part in _PARTS)
    prompts, texts = (len(np.unique(hashes[rows])) for hashes in (store.prompts, store.texts))
    duplicates = len(np.unique(rows)) - texts
    unique = np.unique(rows)
    reversed_too = int(np.isin(store.opposites[unique], store.texts[unique]).sum())
    return PairCounts(prompt, chosen, rejected, prompts, duplicates, reversed_too, recipe.train.batch_tokens)


def pairs_counted(rows: Dataset, recipe: Recipe) -> PairCounts:
    """The counts of some pairs by their tokens."""
    parts = [rows[f"{part}_ids"] for part in _PARTS]
    whole = [tuple(map(tuple, pair)) for pair in zip(*parts, strict=True)]
    known = set(whole)
    prompt, chosen, rejected = (np.array([len(ids) for ids in part], dtype=np.int64) for part in parts)
    return PairCounts(
        prompt,
        chosen,
        rejected,
        prompts=len({pair[0] for pair in known}),
        duplicates=len(whole) - len(known),
        reversed_too=sum((asked, worse, better) in known for asked, better, worse in whole),
        batch_tokens=recipe.train.batch_tokens,
    )


def pair_example(row: dict[str, Any], encoder: Encoder) -> Example:
    """A pair to look at."""
    return Example(str(row["origin"]), [Part(encoder.shown(row[f"{part}_ids"]), part, part) for part in _PARTS])
