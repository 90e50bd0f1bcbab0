"""Two answers under other names than ours: the better one is found where the rows say which it
is, and never guessed."""

from pathlib import Path
from typing import Any

import pytest
from advice_helpers import follow, message, written

from hybrid_ft.finetune.data.messages.preference import Preference
from hybrid_ft.finetune.data.sources.rows import BadRow


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([{"prompt": "q", "response_a": "a", "response_b": "b", "winner": f"model_{n}"} for n in "ab"], ["a", "b"]),
        ([{"question": "q", "answer_1": "a", "answer_2": "b", "preferred": 2}], ["b"]),
        ([{"prompt": "q", "response_A": "a", "response_B": "b", "choice": n} for n in ("B", "tie")], ["b"]),
        ([{"prompt": "q", "text_chosen": "a", "text_rejected": "b"}], ["a"]),
        ([{"prompt": "q", "chosen_response": "a", "rejected_response": "b", "chosen_score": 3}], ["a"]),
        ([{"prompt": "q", "good_answer": "a", "bad_answer": "b"}], ["a"]),
    ],
)
def test_two_answers_and_which_is_better(rows: list[dict[str, Any]], chosen: list[str], tmp_path: Path) -> None:
    pairs, _ = follow(tmp_path, rows, "pairs")
    assert [pair.chosen["content"] for pair in pairs if isinstance(pair, Preference)] == chosen
    assert not any(isinstance(pair, BadRow) for pair in pairs)


@pytest.mark.parametrize("verdict", [0, 1, True, "gpt-4", "left", 0.5])
def test_a_verdict_that_is_not_understood_is_not_guessed(verdict: Any, tmp_path: Path) -> None:
    row = {"prompt": "q", "response_a": "a", "response_b": "b", "winner": verdict}
    assert "set columns" not in message(written(tmp_path, [row]), "pairs")
