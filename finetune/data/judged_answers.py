"""Judged answers: their way into the token store, limits, and counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hybrid_ft.finetune.data.messages.judgement import Judgement
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.reading import judgements
from hybrid_ft.finetune.data.report.account import CUT, CUT_PROMPT, Example, Part
from hybrid_ft.finetune.data.report.answers import AnswerCounts
from hybrid_ft.finetune.data.token_store import TokenStore
from hybrid_ft.finetune.data.tokens.encode_judged import TokenAnswer, encode_judged
from hybrid_ft.finetune.data.tokens.encoder import Encoder
from hybrid_ft.finetune.data.tokens.fit_pairs import NOTHING_LEFT, PROMPT_TOO_LONG
from hybrid_ft.finetune.data.way import TOKENS, Way

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.preference_section import Kto
    from hybrid_ft.finetune.recipe.schema import Recipe

_TOO_LONG = "longer than data.max_length"
_SCHEMA = pa.schema(
    [("prompt_ids", TOKENS), ("completion_ids", TOKENS), ("label", pa.bool_()), ("origin", pa.string())]
)


def way_of_answers(recipe: Recipe, kto: Kto, encoder: Encoder) -> Way[Judgement, TokenAnswer]:
    """The way of a recipe's judged answers."""
    data = recipe.data
    stops = {}
    if kto.on_long_prompt == "error":
        fix = "Raise data.max_length, or set kto.on_long_prompt: drop (or cut_start)"
        stops = {PROMPT_TOO_LONG: fix, NOTHING_LEFT: fix}
    if data.on_long_row == "error":
        stops[_TOO_LONG] = "Raise data.max_length, or set data.on_long_row: drop (or cut)"
    return Way(
        convert=judgements,
        encode=lambda rows: encode_judged(rows, encoder.template, encoder.control, encoder.thoughts),
        fit=partial(
            _fit,
            most=data.max_length,
            header=encoder.header_tokens(),
            cut_prompts=kto.on_long_prompt == "cut_start",
            cut_answers=data.on_long_row == "cut",
        ),
        stops=stops,
        bad_rows_stop=data.on_bad_row == "error",
        mentions=encoder.template.mentions,
        schema=_SCHEMA,
        trained_columns=tuple(_SCHEMA.names),
    )


def _fit(
    answer: TokenAnswer, *, most: int, header: int, cut_prompts: bool, cut_answers: bool
) -> tuple[TokenAnswer, Mapping[str, int]]:
    """The answer within ``most`` tokens, as ``fit_pairs`` does it. Raises Unusable."""
    cut = {CUT_PROMPT: 0, CUT: 0}
    limit = f"data.max_length is {most:,}"
    if answer.tokens > most and cut_prompts and (room := most - len(answer.completion)) > header:
        answer, cut[CUT_PROMPT] = replace(answer, prompt=answer.prompt[-room:]), 1
    if answer.tokens > most:
        prompt = f"the prompt alone has {len(answer.prompt):,} tokens"
        if len(answer.prompt) >= most:
            if cut_answers:
                raise Unusable(NOTHING_LEFT, f"{prompt}, so the cut would take all of the answer; {limit}")
            raise Unusable(PROMPT_TOO_LONG, f"{prompt}; {limit}")
        if not cut_answers:
            raise Unusable(_TOO_LONG, f"prompt and answer have {answer.tokens:,} tokens; {limit}")
        answer, cut[CUT] = replace(answer, completion=answer.completion[: most - len(answer.prompt)]), 1
    return answer, answer.happened() | cut


def count_answers(store: TokenStore, rows: np.ndarray, packs: list[list[int]] | None, recipe: Recipe) -> AnswerCounts:
    """The counts of one split. ``rows``: its answers in the store."""
    assert recipe.kto is not None
    prompt, completion, good = (store.sizes(name, rows) for name in ("prompt", "completion", "good"))
    _, first = np.unique(store.prompts[rows], return_index=True)
    unique = np.unique(rows)
    return AnswerCounts(
        prompt,
        completion,
        good.astype(bool),
        prompts=len(first),
        once=int(prompt[first].sum()),
        duplicates=len(unique) - len(np.unique(store.texts[rows])),
        reversed_too=int(np.isin(store.opposites[unique], store.texts[unique]).sum()),
        batch_tokens=recipe.train.batch_tokens,
        weights=(recipe.kto.desirable_weight, recipe.kto.undesirable_weight),
    )


def answer_example(row: dict[str, Any], encoder: Encoder) -> Example:
    """A judged answer to look at."""
    kind, heading = ("chosen", "good") if row["label"] else ("rejected", "bad")
    parts = [
        Part(encoder.shown(row["prompt_ids"]), "prompt", "prompt"),
        Part(encoder.shown(row["completion_ids"]), kind, heading),
    ]
    return Example(str(row["origin"]), parts)
