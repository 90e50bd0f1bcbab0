"""Task files: strictly read."""

from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation.task import load_task


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows: rows.jsonl\nevaluator: exct\n", "task.yaml:2: evaluator: got 'exct'; must be .*did you mean exact?"),
        ("rows: rows.jsonl\nevaluator: exact\nshot: 3\n", "task.yaml:3: unknown key shot; did you mean shots?"),
        ("rows: rows.jsonl\n", "task.yaml: evaluator is missing: how answers are scored, such as number"),
        ("rows: rows.jsonl\nevaluator: choice\n", "options: must be given for evaluator: choice"),
        ("rows: rows.jsonl\nevaluator: exact\nprogram: x\n", "task.yaml:3: program: is for evaluator: code, not exact"),
        ("evaluator: exact\n", "rows: a task must have rows or made, and not both"),
        ("rows: rows.jsonl\nevaluator: exact\nsamples: 4\n", "task.yaml:3: samples: got 4; needs temperature above 0"),
        (
            "rows: gone.jsonl\nevaluator: exact\n",
            "task.yaml:1: rows.path: got 'gone.jsonl'; there is no such data file",
        ),
        ("rows: rows.jsonl\nevaluator: exact\nprompt: '{{ a'\n", "task.yaml:3: prompt: got '{{ a'; must be a Jinja2"),
        ("made: {kind: needle, tokens: 100}\nevaluator: exact\n", "evaluator: got exact; must be contains"),
        ("rows: rows.jsonl\nevaluator: loss\nshots: 2\n", "shots: the loss is of rows as they are trained"),
    ],
)
def test_a_wrong_task_is_refused(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    Path("task.yaml").write_text(text)
    with pytest.raises(InputError, match=said.replace("{", r"\{").replace("?", r"\?")):
        load_task("task.yaml")


def test_no_such_task() -> None:
    with pytest.raises(InputError, match="gsm8: no such task file, .*did you mean gsm8k"):
        load_task("gsm8")
