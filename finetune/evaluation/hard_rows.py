"""The rows that a trained model finds least likely: where data is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybrid_ft.finetune.evaluation.batches import Budget
from hybrid_ft.finetune.evaluation.files import HARD_ROWS
from hybrid_ft.finetune.evaluation.items import Asked, Item
from hybrid_ft.finetune.evaluation.likelihood import log_probs

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST = 20
SHARE = 0.05
"""Of the tokens that a run has trained on, as many are read again at most: a fiftieth of its time."""
FEWEST = 64
"""Rows that are read however short the run was."""
_LONGEST = 2000  # characters of a text that are kept


@dataclass(frozen=True)
class HardRows:
    """The rows of highest loss, and of how many rows they are the highest, by split."""

    rows: list[dict[str, Any]]
    read: dict[str, int]

    def summary(self) -> str:
        of = " and ".join(f"{count:,} {split} rows" for split, count in self.read.items())
        first = ", ".join(f"{row['origin']} ({row['loss']:.2f})" for row in self.rows[:3])
        return f"{first}; {len(self.rows)} of {of} are in {HARD_ROWS}"


def hard_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Mapping[str, Dataset],
    tokens: int,
    seed: int,
) -> HardRows:
    """The MOST rows of highest loss among a seeded sample of each split.

    A row's ``loss`` is in nats per trained token. Of a pair it is that of the chosen answer less that of the rejected:
    far above 0 the model holds the pair for the wrong way round. Of judged answers the good ones are read.
    ``tokens``: that may be read in all, half of them of held-out rows where there are two splits.
    """
    found: list[dict[str, Any]] = []
    read = {}
    for name, rows in splits.items():
        taken = list(_sample(rows, tokens // len(splits), random.Random(seed)))
        items = [_item(row) for row in taken]
        lines = []
        for number, values in log_probs(model, items, Budget()):
            lines.append((number, _loss(values)))
        read[name] = len(taken)
        found += [_line(tokenizer, taken[number], name, loss) for number, loss in sorted(lines, key=_worst)[:MOST]]
    found.sort(key=lambda line: -line["loss"])
    return HardRows(found[:MOST], read)


def _worst(line: tuple[int, float]) -> tuple[float, int]:
    return -line[1], line[0]


def _sample(rows: Dataset, tokens: int, chance: random.Random) -> Iterator[dict[str, Any]]:
    """Rows in a seeded order, each place once, until so many tokens have been read; FEWEST at least."""
    places = list(range(len(rows)))
    chance.shuffle(places)
    count = 0
    seen: set[str] = set()
    for place in places:
        row = rows[place]
        if row.get("label") is False or row["origin"] in seen:
            continue
        if len(seen) >= FEWEST and tokens <= 0:
            return
        seen.add(row["origin"])
        tokens -= sum(len(row[name]) for name in _PARTS if name in row)
        count += 1
        yield row


_PARTS = ("input_ids", "prompt_ids", "chosen_ids", "rejected_ids", "completion_ids")


def _item(row: dict[str, Any]) -> Item:
    asked = Asked(row["origin"], [], {}, None, {})
    if "input_ids" in row:
        return Item(asked, list(row["input_ids"]), [], list(row["labels"]))
    return Item(asked, list(row["prompt_ids"]), [list(row[name]) for name in _answers(row)])


def _answers(row: dict[str, Any]) -> Sequence[str]:
    return ("chosen_ids", "rejected_ids") if "chosen_ids" in row else ("completion_ids",)


def _loss(values: list[list[float]]) -> float:
    means = [-sum(branch) / max(1, len(branch)) for branch in values]
    return means[0] - means[1] if len(means) == 2 else means[0]


def _line(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], split: str, loss: float) -> dict[str, Any]:
    if "input_ids" in row:
        first = next((at for at, label in enumerate(row["labels"]) if label != -100), len(row["labels"]))
        texts = {"prompt": row["input_ids"][:first], "answer": [label for label in row["labels"] if label != -100]}
    else:
        names = {"chosen_ids": "chosen", "rejected_ids": "rejected", "completion_ids": "answer"}
        texts = {"prompt": row["prompt_ids"]} | {names[name]: row[name] for name in _answers(row)}
    decoded = {name: kept(str(tokenizer.decode(ids, skip_special_tokens=True))) for name, ids in texts.items()}
    return {"origin": row["origin"], "split": split, "loss": round(loss, 6)} | decoded


def kept(text: str) -> str:
    """A text as it is kept: of a long one the beginning and the end, where what is asked of a passage stands."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}\n…\n{text[-half:]}"
