"""From a recipe and a tokenizer to pairs in tokens and the account of them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.pair_pool import PairPool, read_pair_pool
from hybrid_ft.finetune.data.prepare import check_samples, template_text
from hybrid_ft.finetune.data.report.pairs import PairExample, PairReport, PairSide
from hybrid_ft.finetune.data.report.rows import refusal, rows_to_show
from hybrid_ft.finetune.data.selection import held_out, mixed
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.fit_pairs import Limits
from hybrid_ft.finetune.data.tokens.template import ChatTemplate
from hybrid_ft.finetune.data.tokens.vocabulary import check_fits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe.schema import Recipe, Source


@dataclass
class PreparedPairs:
    """A recipe's pairs, ready to train on.

    ``train`` and ``eval`` have columns ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` and ``origin``
    (``file:line``), in the order of the sources. A prompt ends where the model is asked for an answer; an answer ends
    with the token that ends the turn, unless it was cut. ``end_ids``: tokens that end an assistant's turn, the last
    turn's first. ``chat_template``: the template's text, for the tokenizer that is saved.

    The pairs lie in a temporary folder that goes when this object does.
    """

    train: Dataset
    eval: Dataset | None
    report: PairReport
    end_ids: list[int]
    chat_template: str
    folder: tempfile.TemporaryDirectory[str]


def prepare_pairs(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, refuse: bool = True) -> PreparedPairs:
    """Read, encode, mix and split a recipe's pairs.

    Raises InputError for data that cannot be used; with ``refuse=False`` not yet for more dropped rows than the recipe
    allows, which then stands in ``report.refusal``, so that the account can be shown first.
    """
    data, dpo = recipe.data, recipe.dpo
    assert dpo is not None, "a recipe of pairs has a dpo section"
    check_fits(recipe.model, tokenizer)
    control = ControlTokens(tokenizer)
    text, name = template_text(recipe.model.chat_template, tokenizer)
    template = ChatTemplate(text, name, tokenizer, control)
    check_samples(recipe.evaluate.samples, template, control)
    limits = Limits(
        max_length=data.max_length,
        batch_tokens=recipe.train.batch_tokens,
        on_long_prompt=dpo.on_long_prompt,
        on_long_row=data.on_long_row,
        header=_header_tokens(template, control),
    )
    folder = tempfile.TemporaryDirectory(prefix="hybrid-ft-", ignore_cleanup_errors=True)

    def read(sources: list[Source], what: str) -> tuple[PairPool, np.ndarray, str | None]:
        pool = read_pair_pool(sources, data.on_bad_row, limits, template, control, Path(folder.name, f"{what}.arrow"))
        stop = refusal(pool.reports, data.max_dropped, what)
        if stop and (refuse or not len(pool)):
            raise InputError(stop)
        rows = mixed(pool.source, sources, data.seed)
        for report, count in zip(pool.reports, np.bincount(pool.source[rows], minlength=len(sources)), strict=True):
            report.taken = int(count)
        return pool, rows, stop

    pool, train_rows, stop = read(data.sources, "data.sources")
    eval_pool, eval_rows, shared = None, None, 0
    if data.eval.fraction or data.eval.count:
        out = held_out(pool.prompts[train_rows], data.eval, data.seed)
        eval_pool, train_rows, eval_rows = pool, train_rows[~out], train_rows[out]
    elif data.eval.sources:
        eval_pool, eval_rows, eval_stop = read(data.eval.sources, "data.eval.sources")
        stop = stop or eval_stop
        shared = int(np.isin(eval_pool.prompts[eval_rows], pool.prompts[train_rows]).sum())
    train = pool.rows(train_rows)
    account = PairReport(
        template=name,
        max_length=data.max_length,
        batch_tokens=recipe.train.batch_tokens,
        sources=pool.reports,
        eval_sources=eval_pool.reports if eval_pool is not None and eval_pool is not pool else [],
        train=_side(pool, train_rows),
        eval=None if eval_pool is None or eval_rows is None else _side(eval_pool, eval_rows),
        shared_prompts=shared,
        examples=[_example(train[row], tokenizer, control) for row in rows_to_show(pool.source[train_rows])],
        refusal=stop,
    )
    held = None if eval_pool is None or eval_rows is None else eval_pool.rows(eval_rows)
    return PreparedPairs(train, held, account, template.end_ids, text, folder)


def _header_tokens(template: ChatTemplate, control: ControlTokens) -> int:
    """How many tokens the template writes to ask for an answer."""
    question = [{"role": "user", "content": "a"}]
    plain, asking = template.render(question), template.render(question, ask=True)
    return len(control.encode([control.mark(asking.removeprefix(plain))])[0].ids) if asking.startswith(plain) else 1


def _side(pool: PairPool, rows: np.ndarray) -> PairSide:
    prompt, chosen, rejected = pool.lengths(rows)
    prompts, texts = (np.unique(part[rows]) for part in (pool.prompts, pool.texts))
    return PairSide(prompt, chosen, rejected, len(prompts), len(rows) - len(texts))


def _example(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, control: ControlTokens) -> PairExample:
    prompt, chosen, rejected = (
        control.shown(row[f"{part}_ids"], tokenizer) for part in ("prompt", "chosen", "rejected")
    )
    return PairExample(str(row["origin"]), prompt, chosen, rejected)
