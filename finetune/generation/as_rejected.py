"""Pairs for DPO: chosen answers from rows, rejected ones a model's own."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import STORAGE, InputError
from hybrid_ft.finetune.data.messages.conversation import Conversation, has_calls
from hybrid_ft.finetune.data.reading import conversations
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.report.count import Counts
from hybrid_ft.finetune.data.tokens.prompts import PromptEncoder
from hybrid_ft.finetune.generation.generate import Sampling, answer, model_for_answers, tokenizer_for_answers
from hybrid_ft.finetune.generation.model_digest import model_digest
from hybrid_ft.finetune.generation.partial_answers import PartialAnswers
from hybrid_ft.finetune.recipe.data_section import Source
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.shipped import recipe_names
from hybrid_ft.finetune.runs.atomic import write_text
from hybrid_ft.finetune.runs.console import say
from hybrid_ft.finetune.runs.identity import digest_of
from hybrid_ft.hybrid_model.checkpoint.generation_config import end_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console


@dataclass(frozen=True)
class Row:
    """What is asked, the row's own answer, and where it stands."""

    origin: str
    messages: list[dict[str, Any]]
    chosen: dict[str, Any]
    tools: list[dict[str, Any]] | None
    arguments: Mapping[str, Any]
    prompt: list[int]


def run(
    path: str,
    rows_from: str,
    out: Path,
    max_new_tokens: int,
    sampling: Sampling,
    console: Console,
    count: int | None = None,
) -> int:
    """``hybrid-ft generate --as-rejected``: a pair of each row, in the file's order, in a form that DPO reads.

    ``rows_from``: a file of rows in any form that a recipe reads, or a recipe, whose sources are taken; ``count``: so
    many of them, a seeded sample. What was made before a kill is not made again. Raises InputError.
    """
    sources, seed = _sources(rows_from)
    for source in sources:
        if out.exists() and os.path.exists(source.path) and out.samefile(source.path):
            raise InputError(f"{out}: is the file of rows; name another file for the pairs")
    tokenizer = tokenizer_for_answers(path)
    encoder = PromptEncoder(tokenizer)
    left = Counts()
    rows = [row for source in sources for row in _rows(source, seed, encoder, left)]
    if count is not None and count < len(rows):
        rows = [rows[at] for at in sorted(random.Random(seed).sample(range(len(rows)), count))]
    if not rows:
        raise InputError(f"{rows_from}: no row has an answer to be chosen")
    asked = [[row.prompt, row.chosen] for row in rows]
    how = [model_digest(path), sampling.temperature, sampling.top_p, sampling.seed, max_new_tokens]
    kept = PartialAnswers(out, digest_of([how, asked]), len(rows))
    if kept.answers:
        say(console, f"going on after {len(kept.answers):,} answers in {kept.path}")
    if len(kept.answers) < len(rows):
        with console.status(f"loading {path}"):
            model = model_for_answers(path)
        ends = end_tokens(model, tokenizer, encoder.eos_token_ids)
        for part in kept.missing():
            with console.status(f"{part.start:,} of {len(rows):,} answers"):
                chance = replace(sampling, seed=sampling.seed + part.start)
                kept.add(answer(model, tokenizer, [row.prompt for row in rows[part]], ends, max_new_tokens, chance))
    pairs = [_pair(row, text, left) for row, text in zip(rows, kept.answers, strict=True)]
    lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs if pair is not None]
    if not lines:
        raise InputError(
            f"{path}: every answer is the row's own or empty, so there is nothing to prefer; {kept.path} has them"
        )
    try:
        write_text(out, "".join(lines))
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); the answers are in {kept.path}", STORAGE
        ) from None
    kept.path.unlink()
    say(console, f"{len(lines):,} pairs: {out}")
    for reason, of in left.most_first():
        say(console, f"left out, {reason}: {of}")
    return 0


def _sources(name: str) -> tuple[list[Source], int]:
    if name.endswith((".yaml", ".yml")) or (not os.path.exists(name) and name in recipe_names()):
        recipe = load_recipe(name)
        if recipe.stage != "sft":
            raise InputError(f"{name}: is a recipe for {recipe.stage}; chosen answers are the rows of one for sft")
        return list(recipe.data.sources), recipe.data.seed
    if not os.path.exists(name):
        raise InputError(f"{name}: there is no such file of rows, nor a recipe of that name")
    return [Source(path=name)], 0


def _rows(source: Source, seed: int, encoder: PromptEncoder, left: Counts) -> list[Row]:
    """A source's rows that end on an answer in words, as many as it says. Raises InputError where it cannot be read."""
    found = []
    for origin, row in conversations(source, SourceCounts(source.path), texts=False):
        if not isinstance(row, Conversation):
            left.add(getattr(row, "kind", "plain text"), origin)
            continue
        *asked, chosen = row.messages
        if has_calls(chosen) or len(row.messages) - 1 in row.untrained:
            left.add(
                "the last answer calls a function" if has_calls(chosen) else "the last answer is not trained", origin
            )
            continue
        try:
            prompt = encoder(asked, row.tools, row.template_arguments)
        except ValueError as error:
            left.add(str(error), origin)
            continue
        found.append(Row(origin, asked, chosen, row.tools, row.template_arguments, prompt))
    if source.count is not None and source.count < len(found):
        found = [found[at] for at in sorted(random.Random(seed).sample(range(len(found)), source.count))]
    return found


def _pair(row: Row, text: str, left: Counts) -> dict[str, Any] | None:
    """A row for DPO; None where both answers are the same, or the model's is empty."""
    if not text.strip() or text.strip() == row.chosen["content"].strip():
        left.add("the model wrote nothing" if not text.strip() else "the model's answer is the row's", row.origin)
        return None
    rejected = {"role": "assistant", "content": text}
    pair: dict[str, Any] = {"prompt": row.messages, "chosen": [row.chosen], "rejected": [rejected]}
    if row.tools:
        pair["tools"] = row.tools
    if row.arguments:
        pair["chat_template_kwargs"] = dict(row.arguments)
    return pair
