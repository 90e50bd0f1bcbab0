"""Weights of parts, turns and rows become those of their tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.prepare import prepare


def parts(*marked: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text, "weight": weight} for text, weight in marked]


def row(*answers: Any, **more: Any) -> dict[str, Any]:
    turns = []
    for answer in answers:
        turns += [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


@pytest.fixture
def made(tmp_path: Path, recipe: Callable[..., Any], tokenizer: Any) -> Callable[..., Any]:
    def make(*rows: dict[str, Any], **data: Any) -> Any:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return prepare(recipe(path, **data), tokenizer)

    return make


def pieces(row: dict[str, Any], tokenizer: Any) -> list[tuple[str, float]]:
    """The learned text in runs of one weight."""
    weights = row["weights"] or [1.0] * len(row["input_ids"])
    runs: list[tuple[list[int], float]] = []
    for label, weight in zip(row["labels"], weights, strict=True):
        if label != -100:
            if not runs or runs[-1][1] != weight:
                runs.append(([], weight))
            runs[-1][0].append(label)
    return [(tokenizer.decode(ids), weight) for ids, weight in runs]


def test_a_part_that_is_not_trained_is_only_read(made: Any, tokenizer: Any) -> None:
    answer = parts(("  Let me guess: 5.\n", 0), ("It is 4.", 1))
    train = made(row(answer), row("  Let me guess: 5.\nIt is 4.")).train
    assert pieces(train[0], tokenizer) == [("It is 4.<|im_end|>", 1.0)]
    assert train[0]["input_ids"] == train[1]["input_ids"] and train[1]["weights"] == []


def test_weights_of_parts_turns_and_rows(made: Any, tokenizer: Any) -> None:
    several = parts(("One.\n", 0.5), ("Two.\n", 0.25), ("Three.", 1))
    report = made(row(several, "b"), row(several, "b", weight=0.5), row("a", parts(("b", 0.75)))).train
    assert pieces(report[0], tokenizer) == [("One.\n", 0.5), ("Two.\n", 0.25), ("Three.<|im_end|>b<|im_end|>", 1.0)]
    assert pieces(report[1], tokenizer) == [("One.\n", 0.25), ("Two.\n", 0.125), ("Three.<|im_end|>b<|im_end|>", 0.5)]
    assert pieces(report[2], tokenizer) == [("a<|im_end|>", 1.0), ("b<|im_end|>", 0.75)]


def test_a_token_of_two_parts_has_the_later_ones_weight(made: Any, tokenizer: Any) -> None:
    found = pieces(made(row(parts(("The quick ", 0.25), ("brown", 1)))).train[0], tokenizer)
    assert "".join(text for text, _ in found) == "The quick brown<|im_end|>"
    assert found == [("The quick", 0.25), (" brown<|im_end|>", 1.0)]


def test_a_cut_keeps_the_weights_of_what_is_left(made: Any, tokenizer: Any) -> None:
    long = row(parts(("One.\n" * 20, 0.5), ("Two.", 1)))
    train = made(long, max_length=40, on_long_row="cut", train={"batch_tokens": 40}).train
    assert len(train[0]["weights"]) == len(train[0]["input_ids"]) == 40
    assert [weight for _, weight in pieces(train[0], tokenizer)] == [0.5]
    with pytest.raises(
        InputError, match="no row can be trained on; dropped 1 of 1 row .*: longer than data.max_length: 1"
    ):
        untrained = row(parts(("One.\n" * 20, 0), ("Two.", 1)))
        made(untrained, max_length=40, on_long_row="cut", train={"batch_tokens": 40})


def test_counts_are_of_what_is_trained(made: Any, tokenizer: Any) -> None:
    report = made(row(parts(("One.\n", 0), ("Two.", 1))), row("a")).report
    plain = made(row("Two."), row("a")).report
    assert report.train.trained == plain.train.trained
    assert any("turns that weigh less than others in the loss" in line for line in report.warnings())
    assert not any("weigh less" in line for line in plain.warnings())
