"""Scores of a file by a reward model, and how often it is right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

import hybrid_ft
from hybrid_ft.errors import STORAGE, InputError
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs import device
from hybrid_ft.finetune.runs.atomic import write_text
from hybrid_ft.finetune.runs.console import say
from hybrid_ft.finetune.training.reward.batches import padded_pairs
from hybrid_ft.finetune.training.reward.metrics import ScoreSums
from hybrid_ft.hybrid_model.checkpoint.adapter_files import CONFIG, check_adapter, read_adapter
from hybrid_ft.hybrid_model.checkpoint.adapter_start import open_adapter
from hybrid_ft.hybrid_model.checkpoint.config import find_config
from hybrid_ft.hybrid_model.checkpoint.tokenizer import check_vocabulary, load_tokenizer
from hybrid_ft.hybrid_model.families.family import is_scorer
from hybrid_ft.hybrid_model.scorer import as_scorer

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = dict[str, Any]

BATCH_TOKENS = 16_384


def run(path: str, rows_from: str, out: Path | None, console: Console, answers: bool = False) -> int:
    """``hybrid-ft score``: a JSON line for each row, in the file's order, into ``out`` or none, and
    the measures of all.

    ``path``: a reward model's folder, adapter or hub name. The rows are pairs, or with ``answers`` conversations that
    end on an answer. Raises InputError.
    """
    if out is not None and out.exists() and Path(rows_from).exists() and out.samefile(rows_from):
        raise InputError(f"{out}: is the file of rows; name another file for the scores")
    transformers.utils.logging.disable_progress_bar()
    base, tokenizer, config, load = _opened(path)
    # the longest that the model was made for, so that rows are left out only where it cannot read them
    data = {"sources": [{"path": rows_from}], "max_length": config.max_position_embeddings, "packing": False}
    given = {"model": base, "data": data, "train": {"batch_tokens": 3 * config.max_position_embeddings}}
    prepared = prepare(Recipe.model_validate(given if answers else given | {"reward": {}}), tokenizer)
    rows = [dict(row) for row in prepared.train]
    with console.status(f"loading {path}"):
        model = load().to(device.kind()).eval()
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    say(console, f"model     {path}, {len(rows):,} {'answers' if answers else 'pairs'} of {rows_from}")
    lines, said = _answers(model, rows) if answers else _pairs(model, rows)
    for source in prepared.report.sources:
        for reason, of in source.dropped.most_first():
            say(console, f"left out  {reason}: {of}")
    say(console, f"scores    {said}")
    if out is not None:
        try:
            write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror})", STORAGE) from None
        say(console, f"written   {out}")
    return 0


def _opened(path: str) -> tuple[Row, PreTrainedTokenizerBase, Any, Callable[[], PreTrainedModel]]:
    """The base as a recipe names it, tokenizer, config, and what loads the weights."""
    folder = Path(path).expanduser()
    if (folder / CONFIG).is_file():
        adapter = read_adapter(folder)
        if adapter.config.task_type != "SEQ_CLS":
            raise InputError(f"{folder}: is a language model's adapter, which gives no scores; name a reward model")
        own = (folder / "tokenizer.json").is_file()
        tokenizer = load_tokenizer(folder) if own else load_tokenizer(adapter.base, adapter.revision)
        config = find_config(adapter.base, adapter.revision, weights=True)
        config.vocab_size = check_adapter(folder, adapter, as_scorer(config))
        check_vocabulary(tokenizer, config)
        return (
            {"path": adapter.base, "revision": adapter.revision},
            tokenizer,
            config,
            lambda: open_adapter(hybrid_ft.load(adapter.base, revision=adapter.revision, scores=True), folder),
        )
    config = find_config(path, weights=True)
    if not is_scorer(config):
        raise InputError(f"{path}: holds a language model, which gives no scores; hybrid-ft reward makes one that does")
    tokenizer = load_tokenizer(path)
    check_vocabulary(tokenizer, config)
    return {"path": path}, tokenizer, config, lambda: hybrid_ft.load(path)


def _batches(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of rows, longest first, of ``BATCH_TOKENS`` columns together with padding."""
    order = sorted(range(len(sizes)), key=lambda row: -sizes[row])
    while order:
        many = max(1, BATCH_TOKENS // max(sizes[order[0]], 1))
        yield order[:many]
        order = order[many:]


@torch.no_grad()
def _scores(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[B, 1]"""
    place = next(model.parameters()).device
    inputs = {name: x.to(place) if isinstance(x, torch.Tensor) else x for name, x in batch.items() if name != "margin"}
    return model(**inputs).logits.float().cpu()


def _pairs(model: PreTrainedModel, rows: list[Row]) -> tuple[list[Row], str]:
    lines: list[Row] = [{}] * len(rows)
    sums = ScoreSums()
    sizes = [2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]
    for numbers in _batches(sizes):
        scores = _scores(model, padded_pairs([rows[number] for number in numbers], model.config.pad_token_id))
        sums.add(scores)
        for number, chosen, rejected in zip(numbers, *scores.squeeze(-1).chunk(2), strict=True):
            c, r = float(chosen), float(rejected)
            lines[number] = {"origin": rows[number]["origin"], "chosen": c, "rejected": r, "margin": c - r}
    of = sums.take()
    said = f"accuracy {of['accuracy']:.1%}  margin {of['margin']:+.4f}"
    return lines, f"{said}  {_spread(of['mean_reward'], of['min_reward'], of['max_reward'])}"


def _answers(model: PreTrainedModel, rows: list[Row]) -> tuple[list[Row], str]:
    lines: list[Row] = [{}] * len(rows)
    # up to the token that ends the answer, as a pair's rows are trained
    whole = [row["input_ids"][: 1 + max(i for i, label in enumerate(row["labels"]) if label != -100)] for row in rows]
    for numbers in _batches([len(row) for row in whole]):
        longest = len(whole[numbers[0]])
        ids = torch.full((len(numbers), longest), model.config.pad_token_id)
        mask = torch.zeros_like(ids)
        for i, number in enumerate(numbers):
            ids[i, : len(whole[number])], mask[i, : len(whole[number])] = torch.tensor(whole[number]), 1
        for number, score in zip(numbers, _scores(model, {"input_ids": ids, "attention_mask": mask}), strict=True):
            lines[number] = {"origin": rows[number]["origin"], "score": float(score)}
    found = [line["score"] for line in lines]
    return lines, _spread(sum(found) / len(found), min(found), max(found))


def _spread(mean: float, least: float, most: float) -> str:
    return f"mean {mean:+.4f}, from {least:+.4f} to {most:+.4f}"
