"""From a recipe and a tokenizer to tokens, packs and their account."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.decontaminate import decontaminated
from hybrid_ft.finetune.data.judged_answers import answer_example, count_answers, way_of_answers
from hybrid_ft.finetune.data.packing import pack
from hybrid_ft.finetune.data.preference_pairs import count_pairs, pair_example, way_of_pairs
from hybrid_ft.finetune.data.rare_collections import rare_collections
from hybrid_ft.finetune.data.report.account import Account, Example, SplitCounts, refusal, rows_to_show
from hybrid_ft.finetune.data.scratch import Scratch
from hybrid_ft.finetune.data.selection import mix_sources, split_held_out
from hybrid_ft.finetune.data.sources_in_tokens import SourcesInTokens
from hybrid_ft.finetune.data.supervised import count_rows, row_example, way_of_rows
from hybrid_ft.finetune.data.token_store import TokenStore
from hybrid_ft.finetune.data.tokens.encoder import NO_TEMPLATE, Encoder
from hybrid_ft.finetune.data.way import Way

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe.data_section import Source
    from hybrid_ft.finetune.recipe.schema import Recipe


@dataclass
class Prepared:
    """A recipe's data, ready to train on, in the order of the sources.

    Supervised: ``train`` has columns ``input_ids``, ``labels`` (-100: not trained), ``weights`` (of its tokens in the
    loss; [] where all are 1) and ``origin`` (``file:line``); ``eval`` also ``prompt_ids`` (what to give the model to
    ask for the last answer) and ``answer`` (its text; both whole even where the row was cut). Pairs: both have
    ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` and ``origin``; a prompt ends where the model is asked for an
    answer, an answer with the token that ends the turn, unless it was cut. Judged answers: ``prompt_ids``,
    ``completion_ids``, ``label`` (good: True) and ``origin``.

    ``packs`` and ``eval_packs``: lists of row numbers, each row in one list; None without packing, and in preference
    stages, whose steps pack themselves. ``eos_token_ids``: tokens that end an assistant's turn, the last turn's first.
    ``chat_template``: the template's text, None where rows are plain text and there is none, and
    ``template_arguments``: what it was given beside the rows, for the tokenizer that is saved.

    The rows lie among the kept tokens, or in a temporary folder that goes when this object does.
    """

    train: Dataset
    eval: Dataset | None
    packs: list[list[int]] | None
    eval_packs: list[list[int]] | None
    report: Account
    eos_token_ids: list[int]
    chat_template: str | None
    template_arguments: dict[str, Any]
    folder: Scratch


@dataclass(frozen=True)
class Kind:
    """What differs between supervised rows, pairs and judged answers."""

    way: Way[Any, Any]
    packed: bool
    count: Callable[[TokenStore, np.ndarray, list[list[int]] | None, Recipe], SplitCounts]
    example: Callable[[dict[str, Any], Encoder], Example]


@rare_collections()
def prepare(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, refuse: bool = True) -> Prepared:
    """Read, encode, mix, split and pack a recipe's rows, or what its preference stage trains on.

    Raises InputError for data that cannot be used; with ``refuse=False`` not yet for more dropped rows than the recipe
    allows, which then stands in ``report.refusal``, so that the account can be shown first.
    """
    data, encoder = recipe.data, Encoder.of(recipe, tokenizer)
    kind = kind_of(recipe, encoder)
    folder = Scratch()
    in_tokens = SourcesInTokens(recipe, encoder, kind.way, Path(folder.name))

    def read(sources: Sequence[Source], key: str, held_out: bool) -> tuple[TokenStore, np.ndarray, str | None]:
        store = in_tokens.store(sources, key, held_out)
        stop = refusal(store.sources, data.max_dropped, key)
        if stop and (refuse or not len(store)):
            raise InputError(stop)
        trained = store.trained(np.arange(len(store)))
        by_tokens = trained if data.weight_by == "tokens" else None
        drawn = [counts.of > 0 for counts in store.sources]
        rows = mix_sources(store.source, sources, data.seed, key, by_tokens, drawn)
        taken = np.bincount(store.source[rows], minlength=len(sources))
        tokens = np.bincount(store.source[rows], trained[rows], minlength=len(sources))
        for counts, source, size, share in zip(
            store.sources, sources, taken, tokens / max(tokens.sum(), 1), strict=True
        ):
            counts.taken, counts.repeat, counts.share = int(size), source.repeat, float(share)
        return store, rows, stop

    def split(store: TokenStore, rows: np.ndarray) -> tuple[list[list[int]] | None, SplitCounts]:
        lengths = store.sizes("length", rows) if kind.packed else None
        packs = None if lengths is None else pack(lengths, recipe.train.batch_tokens, data.seed)
        return packs, kind.count(store, rows, packs, recipe)

    splits = bool(data.eval.fraction or data.eval.count)
    store, train_rows, stop = read(data.sources, "data.sources", splits)
    held: tuple[TokenStore, np.ndarray] | None = None
    shared = 0
    if splits:
        each = np.unique(train_rows)  # a row that is repeated is held out once
        out = each[split_held_out(store.prompts[each], data.eval, data.seed)]
        held, train_rows = (store, out), train_rows[~np.isin(train_rows, out)]
    elif data.eval.sources:
        eval_store, eval_rows, eval_stop = read(data.eval.sources, "data.eval.sources", True)
        held, stop = (eval_store, eval_rows), stop or eval_stop
        shared = int(np.isin(eval_store.prompts[eval_rows], store.prompts[train_rows]).sum())
    packs, train_counts = split(store, train_rows)
    eval_packs, eval_counts = split(*held) if held else (None, None)
    train = store.dataset(train_rows, kind.way.trained_columns)
    account = Account(
        template=encoder.template.name,
        max_length=data.max_length,
        sources=store.sources,
        eval_sources=held[0].sources if held and held[0] is not store else [],
        train=train_counts,
        eval=eval_counts,
        shared_prompts=shared,
        examples=[kind.example(train[row], encoder) for row in rows_to_show(store.source[train_rows])],
        refusal=stop,
    )
    eval_set = held[0].dataset(held[1]) if held else None
    template, ends = encoder.template, encoder.eos_token_ids
    text = template.text if template.name != NO_TEMPLATE else None
    return Prepared(train, eval_set, packs, eval_packs, account, ends, text, template.arguments, folder)


def kind_of(recipe: Recipe, encoder: Encoder) -> Kind:
    """What a recipe's stage makes of its rows."""
    kind = _kind_of(recipe, encoder)
    return replace(kind, way=decontaminated(kind.way, recipe))


def _kind_of(recipe: Recipe, encoder: Encoder) -> Kind:
    if recipe.kto is not None:
        return Kind(way_of_answers(recipe, recipe.kto, encoder), False, count_answers, answer_example)
    if recipe.of_pairs is None:
        texts = recipe.model.chat_template is None
        return Kind(way_of_rows(recipe.data, encoder, texts), recipe.data.packing, count_rows, row_example)
    return Kind(way_of_pairs(recipe, recipe.of_pairs, encoder), False, count_pairs, pair_example)
