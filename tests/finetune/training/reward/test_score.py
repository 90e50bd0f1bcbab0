"""Scores of a file: those of transformers' own reward model on whole rows, in the file's order."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from hybrid_ft import cli

ANSWERS = [
    (f"What is {n} plus {n % 7}?", f"It is {n + n % 7}.", "No idea," + " none" * (n % 5) + ".") for n in range(9)
]
# a random head likes one kind: every second pair prefers the other
QUESTIONS = [(asked, *pair[:: 1 - 2 * (n % 2)]) for n, (asked, *pair) in enumerate(ANSWERS)]


@pytest.fixture
def rows(tmp_path: Path) -> tuple[Path, Path]:
    pairs, answers = tmp_path / "pairs.jsonl", tmp_path / "answers.jsonl"
    made = [{"prompt": asked, "chosen": good, "rejected": bad} for asked, good, bad in QUESTIONS]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in made))
    turns = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": good}] for asked, good, _ in QUESTIONS
    ]
    answers.write_text("".join(json.dumps({"messages": row}) + "\n" for row in turns))
    return pairs, answers


@pytest.fixture
def scorer(tmp_path: Path) -> Path:
    """The bundled base under a random head."""
    import hybrid_ft
    from hybrid_ft.hybrid_model.checkpoint.config import BUNDLED

    torch.manual_seed(0)
    model = hybrid_ft.load("tiny", dtype=torch.float32, scores=True)
    torch.nn.init.normal_(model.score.weight, std=0.02)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "scorer")
    tokenizer.save_pretrained(tmp_path / "scorer")
    return tmp_path / "scorer"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_and_answers(
    scorer: Path, rows: tuple[Path, Path], plain_scorer: Any, tmp_path: Path, capsys: Any
) -> None:
    pairs, answers = rows
    plain, tokenizer = plain_scorer.from_pretrained(scorer).eval(), AutoTokenizer.from_pretrained(scorer)

    def alone(asked: str, answer: str) -> float:
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
        with torch.no_grad():
            return float(plain(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits)

    assert cli.main(["score", str(scorer), "--rows", str(pairs), "--out", str(tmp_path / "s.jsonl")]) == 0
    want = [(alone(asked, good), alone(asked, bad)) for asked, good, bad in QUESTIONS]
    found = lines(tmp_path / "s.jsonl")
    assert [line["origin"] for line in found] == [f"{pairs}:{n}" for n in range(1, 10)]
    assert [(line["chosen"], line["rejected"]) for line in found] == [pytest.approx(pair, abs=1e-4) for pair in want]
    right = sum(good > bad for good, bad in want) / 9
    margin = sum(good - bad for good, bad in want) / 9
    assert f"accuracy {right:.1%}  margin {margin:+.3f}" in capsys.readouterr().out and 0 < right < 1
    assert (
        cli.main(["score", str(scorer), "--rows", str(answers), "--answers", "--out", str(tmp_path / "a.jsonl")]) == 0
    )
    assert [line["score"] for line in lines(tmp_path / "a.jsonl")] == pytest.approx(
        [good for good, _ in want], abs=1e-4
    )


def test_what_cannot_be_scored_is_one_line(
    scorer: Path, rows: tuple[Path, Path], tiny_base: Path, tmp_path: Path, capsys: Any
) -> None:
    pairs, answers = map(str, rows)
    for arguments, message in (
        (("tiny", pairs), "tiny: holds a language model, which gives no scores; hybrid-ft reward makes one"),
        ((str(scorer), answers), "no columns that hold a pair"),
        ((str(scorer), pairs, "--answers"), "the rows hold pairs"),
        ((str(scorer), pairs, "--out", pairs), "is the file of rows; name another file for the scores"),
        ((str(scorer), pairs, "--out", str(tmp_path / "no" / "s.jsonl")), "its folder does not exist"),
        ((str(tmp_path / "nowhere"), pairs), "no such folder"),
    ):
        model, file, *more = arguments
        capsys.readouterr()
        assert cli.main(["score", model, "--rows", file, *more]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
