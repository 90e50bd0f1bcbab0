"""Answers that are missing are made, scored and kept; those that are there are not made again."""

import json
from pathlib import Path

import pytest
from evaluate_runs import run

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation import named_tasks, scoring


def test_it_goes_on_after_any_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut in the middle of a line: that answer is made again, and no other."""
    run(["first"], tasks=["exact.yaml"])
    (file,) = Path("out/answers").iterdir()
    whole, results = file.read_bytes(), Path("out/results.json").read_bytes()
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:4]) + lines[4][:25])
    made = []
    add = scoring.Kept.add
    monkeypatch.setattr(scoring.Kept, "add", lambda self, part: made.extend(part) or add(self, part))
    run(["first"], tasks=["exact.yaml"])
    assert len(made) == 5
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert Path("out/results.json").read_bytes() == results
    file.write_bytes(b"not json\n")
    with pytest.raises(InputError, match="is not a file of kept answers"):
        run(["first"], tasks=["exact.yaml"])


@pytest.mark.parametrize("task", ["sampled", "loss"])
def test_what_is_made_after_an_interruption_is_the_same_to_the_last_bit(place: Path, task: str) -> None:
    """Wherever it was cut off: batches and their seeds are those of a run that nobody touched."""
    Path("sampled.yaml").write_text(
        "rows: rows.jsonl\nevaluator: exact\nmax_new_tokens: 5\ntemperature: 1.0\nsamples: 2\n"
    )
    run(["first"], tasks=[f"{task}.yaml"], batch_tokens=150)
    (file,) = Path("out/answers").iterdir()
    whole, results = file.read_bytes(), Path("out/results.json").read_bytes()
    lines = whole.splitlines(keepends=True)
    answers = [json.loads(line).get("answer") for line in lines]
    assert task == "loss" or len(set(answers)) > 12  # nothing is drawn twice
    for end in (1, len(lines) // 2, len(lines) - 2):
        file.write_bytes(b"".join(lines[:end]))
        run(["first"], tasks=[f"{task}.yaml"], batch_tokens=150)
        assert file.read_bytes() == whole, end
        assert Path("out/results.json").read_bytes() == results


def test_samples_and_written_code(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("code.yaml").write_text(
        "rows: rows.jsonl\nevaluator: code\nprogram: '{{ answer }}'\nsamples: 3\ntemperature: 1\nmax_new_tokens: 4\n"
    )
    with pytest.raises(InputError, match=r"code.yaml: runs code that the model writes; allow it with --run-code"):
        run(["first"], tasks=["code.yaml"])
    assert not Path("out").exists()
    ran: list[str] = []
    monkeypatch.setattr(
        scoring.code, "passes", lambda programs: ran.extend(programs) or [True, False, False] * (len(programs) // 3)
    )
    monkeypatch.setattr(named_tasks, "check_jail", lambda: None)
    run(["first"], tasks=["code.yaml"], run_code=True, limit=4)
    table = json.loads(Path("out/results.json").read_text())
    assert len(ran) == 12 and table["measures"][0]["items"] == 4
    assert table["measures"][0]["scores"][0]["value"] == pytest.approx(1 / 3)
