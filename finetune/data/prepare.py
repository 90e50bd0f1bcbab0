"""From a recipe and a tokenizer to rows in tokens, packs and the account of both."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.packing import pack
from hybrid_ft.finetune.data.pool import Pool, read_pool
from hybrid_ft.finetune.data.report.rows import Example, Report, Side, refusal, rows_to_show, side
from hybrid_ft.finetune.data.selection import held_out, mixed
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import encode
from hybrid_ft.finetune.data.tokens.template import ChatTemplate
from hybrid_ft.finetune.data.tokens.vocabulary import check_fits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe.schema import Recipe

_TEMPLATES = Path(__file__).parent / "tokens"
_MOST_TEMPLATE_BYTES = 2**20


@dataclass
class Prepared:
    """A recipe's data, ready to train on.

    ``train`` has columns ``input_ids``, ``labels`` (-100: not trained) and ``origin`` (``file:line``), in the order of
    the sources; ``eval`` also ``prompt_ids`` (what to give the model to ask for the last answer) and ``answer`` (its
    text; both whole even where the row was cut). ``packs`` and ``eval_packs``: lists of row numbers, each row in one list;
    None without packing. ``end_ids``: tokens that end an assistant's turn, the last turn's first. ``chat_template``:
    the template's text, for the tokenizer that is saved.

    The rows lie in a temporary folder that goes when this object does.
    """

    train: Dataset
    eval: Dataset | None
    packs: list[list[int]] | None
    eval_packs: list[list[int]] | None
    report: Report
    end_ids: list[int]
    chat_template: str
    folder: tempfile.TemporaryDirectory[str]


def prepare(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, refuse: bool = True) -> Prepared:
    """Read, encode, mix, split and pack a recipe's rows.

    Raises InputError for data that cannot be used; with ``refuse=False`` not yet for more dropped rows than the recipe
    allows, which then stands in ``report.refusal``, so that the account can be shown first.
    """
    data = recipe.data
    check_fits(recipe.model, tokenizer)
    control = ControlTokens(tokenizer)
    text, name = template_text(recipe.model.chat_template, tokenizer)
    template = ChatTemplate(text, name, tokenizer, control)
    check_samples(recipe.evaluate.samples, template, control)
    folder = tempfile.TemporaryDirectory(prefix="hybrid-ft-", ignore_cleanup_errors=True)
    splits = bool(data.eval.fraction or data.eval.count)
    pool = read_pool(data.sources, data, template, control, Path(folder.name, "train.arrow"), held_out=splits)
    stop = _refusal(pool, data.max_dropped, "data.sources", refuse)
    chosen = mixed(pool.source, data.sources, data.seed)
    taken = np.bincount(pool.source[chosen], minlength=len(data.sources))
    for report, count in zip(pool.reports, taken.tolist(), strict=True):
        report.taken = count
    eval_pool, eval_rows, shared = None, None, 0
    train_rows = chosen
    if splits:
        out = held_out(pool.prompts[chosen], data.eval, data.seed)
        eval_pool, train_rows, eval_rows = pool, chosen[~out], chosen[out]
    elif data.eval.sources:
        file = Path(folder.name, "eval.arrow")
        eval_pool = read_pool(data.eval.sources, data, template, control, file, held_out=True)
        stop = stop or _refusal(eval_pool, data.max_dropped, "data.eval.sources", refuse)
        eval_rows = mixed(eval_pool.source, data.eval.sources, data.seed, "data.eval.sources")
        taken = np.bincount(eval_pool.source[eval_rows], minlength=len(data.eval.sources))
        for report, count in zip(eval_pool.reports, taken.tolist(), strict=True):
            report.taken = count
        shared = int(np.isin(eval_pool.prompts[eval_rows], pool.prompts[train_rows]).sum())
    packs, train_side = _packed(pool, train_rows, recipe)
    eval_packs, eval_side, eval_set = None, None, None
    if eval_pool is not None and eval_rows is not None:
        eval_packs, eval_side = _packed(eval_pool, eval_rows, recipe)
        eval_set = eval_pool.rows(eval_rows, held_out=True)
    train = pool.rows(train_rows, held_out=False)
    account = Report(
        template=name,
        max_length=data.max_length,
        batch_size=recipe.train.batch_size,
        batch_tokens=recipe.train.batch_tokens,
        sources=pool.reports,
        eval_sources=eval_pool.reports if eval_pool is not None and not splits else [],
        train=train_side,
        eval=eval_side,
        shared_prompts=shared,
        examples=[_example(train[row], tokenizer, control) for row in rows_to_show(pool.source[train_rows])],
        refusal=stop,
    )
    return Prepared(train, eval_set, packs, eval_packs, account, template.end_ids, text, folder)


def template_text(wanted: str | None, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """A chat template's text and what to call it: the recipe's, or the tokenizer's own."""
    if wanted is None:
        try:
            text = tokenizer.get_chat_template()
        except ValueError:
            fix = "set model.chat_template: olmo-instruct, or a .jinja file"
            raise InputError(f"model.chat_template: the tokenizer has none; {fix}") from None
        if not isinstance(text, str):
            raise InputError("model.chat_template: the tokenizer's own is no text; name a .jinja file")
        return text, "(the tokenizer's own)"
    shipped = _TEMPLATES / f"{wanted}.jinja"
    path = shipped if shipped.is_file() else Path(wanted)
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_TEMPLATE_BYTES + 1)
        if len(raw) > _MOST_TEMPLATE_BYTES:
            size = f"{_MOST_TEMPLATE_BYTES // 1024} kB"
            raise InputError(f"model.chat_template: {wanted} is larger than {size}; a chat template is a short program")
        return raw.decode("utf-8-sig"), wanted
    except OSError as error:
        raise InputError(f"model.chat_template: {wanted} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"model.chat_template: {wanted} is not UTF-8") from None


def check_samples(samples: list[str], template: ChatTemplate, control: ControlTokens) -> None:
    """Refuse a prompt of the recipe that the chat template cannot render, before a model is asked it."""
    for index, sample in enumerate(samples):
        turns = [{"role": "user", "content": sample}, {"role": "assistant", "content": "x"}]
        (encoded,) = encode([Conversation(turns)], template, control)
        if isinstance(encoded, BadRow):
            raise InputError(f"evaluate.samples.{index}: {encoded}")


def _refusal(pool: Pool, most: float, what: str, refuse: bool) -> str | None:
    stop = refusal(pool.reports, most, what)
    if stop and (refuse or not len(pool.lengths)):
        raise InputError(stop)
    return stop


def _packed(pool: Pool, rows: np.ndarray, recipe: Recipe) -> tuple[list[list[int]] | None, Side]:
    lengths = pool.lengths[rows]
    packs = pack(lengths, recipe.train.batch_tokens, recipe.data.seed) if recipe.data.packing else None
    counts = side(
        lengths, pool.trained[rows], pool.texts[rows], packs, recipe.train.batch_size, recipe.train.batch_tokens
    )
    return packs, counts


def _example(row: dict[str, list[int]], tokenizer: PreTrainedTokenizerBase, control: ControlTokens) -> Example:
    ids, labels = row["input_ids"], row["labels"]
    trained = [label != -100 for label in labels]
    edges = [0, *(at for at in range(1, len(ids)) if trained[at] != trained[at - 1]), len(ids)]
    runs = [(control.shown(ids[begin:end], tokenizer), trained[begin]) for begin, end in pairwise(edges)]
    return Example(str(row["origin"]), runs)
