"""lm_eval's samples as scored lines, so that its tasks stand in the same table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation.batches import Budget
from hybrid_ft.finetune.evaluation.kept import Kept
from hybrid_ft.finetune.evaluation.scored import Scored
from hybrid_ft.finetune.evaluation.share import ALONE, Share
from hybrid_ft.finetune.evaluation.stock_tasks import Stock, asked, templates_once
from hybrid_ft.finetune.recipe.shipped import STOCK
from hybrid_ft.hybrid_model.checkpoint.adapter_files import CONFIG, read_adapter
from hybrid_ft.hybrid_model.checkpoint.config import find_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def score_stock(
    stock: Stock,
    load: Callable[[], PreTrainedModel],
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    kept: Kept,
    budget: Budget,
    share: Share = ALONE,
) -> list[Scored]:
    """A model's scores: of a group whose score is the mean over all rows one, else one of each of its tasks.

    ``load``: opens the model of ``config``, and is called where an answer is missing.
    """
    from hybrid_ft.finetune.evaluation.stock_model import StockModel

    model = StockModel(load, config, tokenizer, kept, budget, stock.options.form == "chat", share)
    began = time.perf_counter()
    with templates_once():
        found = _scored(stock, asked(stock, model))
    found[0].tokens, found[0].seconds = model.tokens, time.perf_counter() - began
    if model.cut:
        found[0].remarks.append(
            f"{len(model.cut):,} prompts lost their beginning; the model reads {model.max_length:,} tokens"
        )
    return found


def config_of(path: str) -> PreTrainedConfig:
    """Of a model, or of an adapter's base."""
    folder = Path(path).expanduser()
    if not (folder / CONFIG).is_file():
        return find_config(path)
    adapter = read_adapter(folder)
    return find_config(adapter.base, adapter.revision)


def measures_of_all(stocks: Sequence[Stock]) -> dict[str, list[str]]:
    """``measures_of`` of all names. Raises InputError where one of them brings a task that another has brought."""
    found: dict[str, list[str]] = {}
    for stock in stocks:
        here = measures_of(stock)
        if twice := [name for name in here if name in found]:
            raise InputError(f"{stock.name}: {twice[0]} is there already, by itself or in another group; name it once")
        found |= here
    return found


def measures_of(stock: Stock) -> dict[str, list[str]]:
    """What the measures are called of each task that will stand in the table, the first first."""
    found = {}
    for leaf, task in stock.leaves.items():
        filters = [one.name for one in getattr(task, "_filters", [])] or ["none"]
        found[f"{STOCK}{leaf}"] = [_measure(f"{metric},{one}") for one in filters for metric in task.aggregation()]
    means = _over_all_rows(stock)
    if not means and len(found) > 1:
        return found
    names = dict.fromkeys(name for names in found.values() for name in names)
    return {stock.name: [name for name in names if not means or name.partition(",")[0] in means]}


def _over_all_rows(stock: Stock) -> list[str]:
    """Where a name is a group's, the metrics whose score of the group is the mean over all of its rows."""
    listed = [] if stock.group is None else stock.group.aggregate_metric_list or []
    return [one.metric for one in listed if one.aggregation == "mean" and one.weight_by_size]


def _measure(key: str) -> str:
    """lm_eval's ``acc,none`` without the filter that is none."""
    return key.removesuffix(",none")


def _scored(stock: Stock, results: dict[str, Any]) -> list[Scored]:
    leaves = [_of_leaf(stock, leaf, results) for leaf in stock.leaves]
    if means := _over_all_rows(stock):
        return [_pooled(stock, leaves, means)]
    if len(leaves) == 1:
        leaves[0].name = stock.name
    return leaves


def _of_leaf(stock: Stock, leaf: str, results: dict[str, Any]) -> Scored:
    from lm_eval.api.metrics import mean

    by_row: dict[int, dict[str, Any]] = {}
    for sample in results["samples"][leaf]:
        line = by_row.setdefault(sample["doc_id"], _line(stock, leaf, sample))
        for metric in sample["metrics"]:
            line["scores"][_measure(f"{metric},{sample['filter']}")] = sample[metric]
    lines = [by_row[row] for row in sorted(by_row)]
    higher, aggregation = results["higher_is_better"].get(leaf, {}), stock.leaves[leaf].aggregation()
    totals, known, unbounded = {}, set(), set()
    for key, value in results["results"][leaf].items():
        metric = key.partition(",")[0]
        if "," not in key or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        name = _measure(key)
        values = [line["scores"].get(name) for line in lines]
        if aggregation.get(metric, mean) is not mean or not all(isinstance(one, int | float) for one in values):
            totals[name] = float(value)
            continue
        known.add(name)
        if not all(0 <= one <= 1 for one in values):
            unbounded.add(name)
    for line in lines:
        line["scores"] = {name: float(line["scores"][name]) for name in line["scores"] if name in known}
    falling = {name for name in {*known, *totals} if higher.get(name.partition(",")[0]) is False}
    return Scored(
        f"{STOCK}{leaf}",
        None,
        lines,
        forgetting=stock.forgetting,
        totals=totals,
        falling=frozenset(falling),
        unbounded=frozenset(unbounded),
    )


def _line(stock: Stock, leaf: str, sample: dict[str, Any]) -> dict[str, Any]:
    task = stock.leaves[leaf]
    answer, reference = sample["filtered_resps"], sample["target"]
    if task.get_config("output_type") == "multiple_choice":
        options = [str(arguments[1]).strip() for arguments in sample["arguments"]]
        likelihoods = [float(weighed[0]) for weighed in answer][: len(options)]
        answer = options[max(range(len(likelihoods)), key=likelihoods.__getitem__)]
        if isinstance(reference, int) and 0 <= reference < len(options):
            reference = options[reference]
    while isinstance(answer, list | tuple) and len(answer) == 1:
        answer = answer[0]
    return {
        "item": sample["doc_id"],
        "origin": f"{STOCK}{leaf}:{sample['doc_id'] + 1}",
        "question": str(task.doc_to_text(sample["doc"])),
        "answer": str(answer),
        "reference": str(reference),
        "scores": {},
    }


def _pooled(stock: Stock, leaves: list[Scored], means: list[str]) -> Scored:
    """All rows of a group as one task's."""
    lines = [line for leaf in leaves for line in leaf.lines]
    for line in lines:
        line["scores"] = {name: value for name, value in line["scores"].items() if name.partition(",")[0] in means}
    return Scored(
        stock.name,
        None,
        lines,
        forgetting=stock.forgetting,
        falling=frozenset(name for leaf in leaves for name in leaf.falling),
        unbounded=frozenset(name for leaf in leaves for name in leaf.unbounded),
    )
