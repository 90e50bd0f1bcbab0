"""The rows of highest loss: each loss by plain transformers, and a wrong row found."""

import json
from typing import Any

import pytest
import torch
from run_helpers import plain_model

from hybrid_ft.finetune.evaluation import hard_rows
from hybrid_ft.finetune.evaluation.files import HARD_ROWS
from hybrid_ft.finetune.evaluation.hard_rows import HardRows


@pytest.fixture
def model(steady_base: Any) -> Any:
    from hybrid_ft.finetune.generation.generate import load_for_answers

    return load_for_answers(str(steady_base))


def of_plain(base: Any, ids: list[int], labels: list[int]) -> float:
    """Mean loss of the labelled tokens, in float64 by transformers' own class."""
    with torch.no_grad():
        logits = plain_model(base)(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    kept = [(at, label) for at, label in enumerate(labels[1:]) if label != -100]
    return -sum(float(logits[at, label]) for at, label in kept) / len(kept)


def test_the_loss_of_a_row_is_that_of_plain_transformers(model: Any, steady_base: Any, make_rows: Any) -> None:
    rows = make_rows(9)
    found = hard_rows.hard_rows(*model, {"training": rows}, 10**6, 0)
    assert found.read == {"training": 9} and len(found.rows) == 9
    losses = [row["loss"] for row in found.rows]
    assert losses == sorted(losses, reverse=True)
    for row in found.rows:
        index = rows["origin"].index(row["origin"])
        assert row["loss"] == pytest.approx(
            of_plain(steady_base, rows["input_ids"][index], rows["labels"][index]), abs=2e-5
        )
    assert "rows.jsonl:" in found.summary() and "9 training rows" in found.summary()


def test_pairs_are_held_against_each_other(model: Any, steady_base: Any, make_pairs: Any) -> None:
    pairs = make_pairs(6)
    found = hard_rows.hard_rows(*model, {"training": pairs, "held-out": pairs}, 10**6, 0)
    assert found.read == {"training": 6, "held-out": 6}
    for row in found.rows:
        pair = pairs[pairs["origin"].index(row["origin"])]
        sides = []
        for name in ("chosen_ids", "rejected_ids"):
            prompt = pair["prompt_ids"]
            sides.append(of_plain(steady_base, prompt + pair[name], [-100] * len(prompt) + pair[name]))
        assert row["loss"] == pytest.approx(sides[0] - sides[1], abs=4e-5)
        assert {"prompt", "chosen", "rejected"} <= set(row)


def test_a_sample_is_seeded_and_no_larger_than_said(
    model: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hard_rows, "FEWEST", 3)
    rows = make_rows(30)
    few, again, other = (hard_rows.hard_rows(*model, {"training": rows}, 60, seed) for seed in (0, 0, 1))
    assert 3 <= few.read["training"] <= 13 and few == again and few.rows != other.rows
    assert hard_rows.hard_rows(*model, {"training": rows}, 0, 0).read == {"training": 3}


def test_a_run_names_them(start: Any) -> None:
    """On the screen, in a file, on the page, where hostile text is text."""
    run = start(held_out=4)
    lines = [json.loads(line) for line in (run.folder / HARD_ROWS).read_text().splitlines()]
    assert len(lines) == 16 and {line["split"] for line in lines} == {"training", "held-out"}
    assert lines[0]["loss"] == max(line["loss"] for line in lines)
    assert f"hard rows {lines[0]['origin']} (" in run.screen
    lines[0]["answer"] = "<script>alert(1)</script>"
    (run.folder / HARD_ROWS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    from hybrid_ft.finetune.reports.page import write_report

    page = write_report([run.folder], run.folder / "page.html").read_text()
    assert page.count("<script") == 1 and "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert f"{lines[0]['origin']}" in page and "highest loss" in page


def test_nothing_is_nothing() -> None:
    assert HardRows([], {"training": 0}).rows == []
