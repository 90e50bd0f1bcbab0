"""What is shown of answers before and after."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from hybrid_ft.finetune.evaluation.answers import show


def test_the_table_and_three_examples() -> None:
    def measured(loss: float, exact: int) -> dict[str, Any]:
        rows = [
            {"origin": f"held[{row}]", "answer": "word " * 60 + "\nend", "reference": "[b]x", "exact": row < exact}
            for row in range(4)
        ]
        return {"loss": loss, "answers": rows, "samples": [{"prompt": "hello", "answer": f"loss {loss}"}]}

    screen = io.StringIO()
    show(Console(file=screen, width=60), measured(2.5, 0), measured(1.25, 3))
    lines = [line.rstrip() for line in screen.getvalue().splitlines() if line.strip()]
    assert max(map(len, lines)) <= 60
    table = " ".join(screen.getvalue().split())
    assert "exact answers 0.0% (0/4) 75.0% (3/4)" in table and "held-out loss 2.5000 1.2500" in table
    assert [line for line in lines if line.startswith("held[")] == ["held[0]", "held[1]", "held[2]"]
    assert sum(line == "  reference  [b]x" for line in lines) == 3
    starts = [line.split()[0] for line in lines if line.startswith(("  before", "  after"))]
    assert starts == ["before", "after"] * 4
    # cut, and all that is shown of one on lines of its own
    assert sum("…" in line for line in lines) == 6 and "end" not in table
    assert sum(line.count("word") for line in lines) == 6 * 48
    assert lines[-3:] == ["hello", "  before  loss 2.5", "  after   loss 1.25"]


def test_rows_of_a_file_that_ask_nothing_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that are asked stand side by side in a file read bit by bit, as held-out rows do."""
    from datasets import Dataset

    from hybrid_ft.finetune.evaluation import answers
    from hybrid_ft.finetune.recipe.schema import Evaluate

    rows = [{"prompt_ids": [5] * (number > 1), "answer": "a", "origin": f"r:{number}"} for number in range(2500)]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "rows"))
    asked: list[int] = []
    monkeypatch.setattr(
        answers, "answer", lambda model, tokenizer, prompts, *rest: asked.append(len(prompts)) or ["a"] * len(prompts)
    )
    words = SimpleNamespace(decode=lambda ids, skip_special_tokens: str(ids))
    found = answers.answer_held_out(
        None, words, Dataset.load_from_disk(str(tmp_path / "rows")), [], Evaluate(answers=3)
    )  # type: ignore[arg-type]
    assert asked == [3] and [line["origin"] for line in found] == ["r:2", "r:834", "r:1667"]
