"""A column for each model of a file of stages: the table, the changes and an answer that did."""

import io
from typing import Any

import pytest
from rich.console import Console

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation import comparison
from hybrid_ft.finetune.evaluation.comparison import show, show_table
from hybrid_ft.finetune.evaluation.statistics import difference, share
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.recipe.stages import Questions


def answers(source: str, exact: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "source": source,
            "origin": f"{source}:{row}",
            "answer": f"{'right' if right else 'wrong'} {row}",
            "reference": f"right {row}",
            "exact": bool(right),
        }
        for row, right in enumerate(exact)
    ]


COLUMNS = [
    ("base", answers("data/a.jsonl", [0, 0, 0, 1] * 10) + answers("data/b.jsonl", [1, 1])),
    ("sft", answers("data/a.jsonl", [0, 1, 1, 1] * 10) + answers("data/b.jsonl", [1, 1])),
    ("dpo", answers("data/a.jsonl", [1, 1, 1, 1] * 10) + answers("data/b.jsonl", [1, 0])),
]


def shown(call: Any) -> tuple[Any, str]:
    screen = io.StringIO()
    found = call(Console(file=screen, width=120), COLUMNS)
    return found, " ".join(screen.getvalue().split())


def test_each_source_has_a_share_of_each_model_and_its_interval() -> None:
    changes, text = shown(show_table)
    assert "base sft dpo" in text and "a.jsonl" in text and "b.jsonl" in text
    for right in (10, 30, 40):
        one = share([1.0] * right + [0.0] * (40 - right))
        assert f"({right}/40)" in text and f"[{100 * one.low:.1f}, {100 * one.high:.1f}]" in text
    assert [line.partition(": ")[0] for line in changes] == ["base to sft", "sft to dpo"] * 2
    before, after = ([float(line["exact"]) for line in COLUMNS[n][1][:40]] for n in (0, 1))
    change = difference(before, after)
    assert change.settled and f"{100 * change.value:+.1f} points [{100 * change.low:+.1f}" in changes[0]
    assert "no difference seen, at most" in changes[2]


def test_an_answer_that_changed_most_is_shown_of_each_source() -> None:
    _, text = shown(show)
    # the first that the last model answers and none before it does
    assert "data/a.jsonl:0" in text and "data/b.jsonl:0" in text and "data/a.jsonl:1 " not in text
    assert "base wrong 0" in text and "sft wrong 0" in text and "dpo right 0" in text


def test_rows_of_text_alone_hold_no_question(tmp_path: Any) -> None:
    data = {"sources": [{"path": str(tmp_path / "a.txt"), "format": "text"}]}
    recipe = Recipe.model_validate({"model": {"path": "tiny"}, "data": data})
    questions = Questions.model_validate({"sources": data["sources"]})
    with pytest.raises(InputError, match="a.txt: format: text holds no question that can be asked"):
        comparison.check(questions, recipe)
