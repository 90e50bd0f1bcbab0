"""Answers that are missing are made, scored and kept; those that are there are not made again."""

import json
from pathlib import Path
from typing import Any

import pytest
from evaluate_runs import run

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation import named_tasks, scoring
from hybrid_ft.finetune.evaluation.batches import Budget
from hybrid_ft.finetune.evaluation.items import read_items
from hybrid_ft.finetune.evaluation.task import Task, load_task
from hybrid_ft.hybrid_model.checkpoint.config import BUNDLED
from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer


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


ANSWER = {
    "exact": ("Oslo", "Oslo"),
    "contains": ("oslo", "It is Oslo."),
    "number": ("7", "#### 7"),
    "json": ('{"a": 1, "b": null}', '{"a": 1, "b": null}'),
    "calls": ("none", "none"),
    "instructions": ("any", "no commas here"),
    "refusal": ("refuse", "I'm sorry, but I cannot help."),
    "code": ("any", "x = 1"),
}
"""Of each evaluator that reads answers a reference, and an answer that is right."""
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("evaluator", ANSWER)
def test_an_answer_that_was_cut_inside_its_thoughts_is_none(
    evaluator: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stands in the thoughts; with the end of thoughts the same answer is right."""
    reference, right = ANSWER[evaluator]
    tokenizer = load_tokenizer(Path("first"))
    tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + tokenizer.chat_template
    tokenizer.save_pretrained("first")
    row = {"prompt": "ask", "completion": reference, "tools": [WEATHER] if evaluator == "calls" else []}
    row |= {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    Path("cut.yaml").write_text(
        f"rows: {{path: rows.jsonl, columns: {{prompt: prompt, completion: completion, tools: tools}}}}\n"
        f"evaluator: {evaluator}\n" + ("program: '{{ answer }}'\n" if evaluator == "code" else "")
    )
    monkeypatch.setattr(scoring.code, "passes", lambda programs: [True] * len(programs))
    monkeypatch.setattr(named_tasks, "check_jail", lambda: None)
    scores = {}
    for name, text in (("cut", f"<think>\n{right}"), ("ended", f"<think>\nI cannot, 5.\n</think>\n\n{right}")):
        monkeypatch.setattr(scoring, "write_answers", lambda *_, text=text, **__: iter([(0, (text, 512))]))
        _, said = run(["first"], tasks=["cut.yaml"], run_code=True, out=Path(name))
        lines = [json.loads(line) for file in Path(name, "answers").iterdir() for line in file.read_text().splitlines()]
        assert lines[0].get("unended", False) == (name == "cut")
        assert ("1 of 1 rows have an answer without </think>, which counts as wrong" in said) == (name == "cut")
        scores[name] = lines[0]["scores"]
    assert set(scores["cut"].values()) == {0.0} and scores["cut"].keys() == scores["ended"].keys()
    assert next(iter(scores["ended"].values())) == 1.0


@pytest.mark.parametrize(
    ("keys", "opening", "answer", "counted"),
    [
        ({}, "", "7", "7"),
        ({}, "<think>\n", "7", None),
        ({}, "<think>\n", "6</think>7", "7"),
        ({}, "<think>\n\n</think>\n\n", "7", "7"),
        ({"after": "</think>"}, "", "7", None),
        ({"after": "</think>"}, "<think>", "6</think>7</think>8", "8"),
        ({"after": "</think>"}, "<think>\n\n</think>\n\n", "7", "7"),
        ({"after": "</think>"}, "<think>\n\n</think>\n\n", "<think>7", None),
        ({"after": "So:"}, "<think>\n\n</think>\n\n", "7", None),
        ({"after": "So:"}, "<think>", "So: 6</think>So: 7", " 7"),
        ({"after": "</think>", "stop": ["."]}, "", "5. 6.</think>7. 8.", "7"),
    ],
)
def test_what_counts(keys: dict[str, Any], opening: str, answer: str, counted: str | None) -> None:
    """What follows the thoughts, which the prompt may have opened, or ended before the answer begins."""
    task = Task.model_validate({"rows": {"path": "x"}, "evaluator": "number"} | keys)
    assert scoring.what_counts(task, answer, opening) == counted


@pytest.mark.parametrize("opening", ["", "<think>\n"])
def test_a_thought_that_the_template_opens_is_not_stopped(
    opening: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of the task's stop may stand in it; elsewhere it ends the answer."""
    tokenizer = load_tokenizer(BUNDLED)
    tokenizer.chat_template += "{% if add_generation_prompt %}" + opening + "{% endif %}"
    Path("stopped.yaml").write_text("rows: rows.jsonl\nevaluator: exact\nstop: [x]\n")
    task = load_task("stopped.yaml")[1]
    items = read_items(task, tokenizer)
    stops: list[Any] = []

    def written(*given: Any) -> Any:
        stops.extend(given[7])
        return iter([(row, ("no x</think>it is 0", 5)) for row in range(9)])

    monkeypatch.setattr(scoring, "write_answers", written)
    monkeypatch.setattr(scoring, "end_tokens", lambda *_: [])
    kept = scoring.Kept(Path("kept.jsonl"))
    model: Any = None
    scoring.score_missing(task, items, kept, model, tokenizer, Budget())
    right = sum(line["scores"]["exact"] for line in kept.lines.values())
    assert (stops, right) == (([], 1.0) if opening else (["x"], 0.0))
