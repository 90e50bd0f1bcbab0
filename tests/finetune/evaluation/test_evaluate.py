"""The whole command: two models, one table, answers that are kept, gates."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation import contamination, evaluate, gate, named_tasks, scoring, table
from hybrid_ft.finetune.evaluation.evaluate import Wanted
from hybrid_ft.finetune.evaluation.measure import Measure
from hybrid_ft.finetune.evaluation.statistics import Interval

TASKS = {
    "exact": "rows: rows.jsonl\nevaluator: exact\nmax_new_tokens: 6\n",
    "choice": "rows: letters.jsonl\nevaluator: choice\noptions: [a, b, cd]\nshots: 2\n",
    "loss": "rows: rows.jsonl\nevaluator: loss\n",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steady_base: Path) -> Path:
    """Rows and tasks, and two models that differ."""
    import hybrid_ft
    from hybrid_ft.hybrid_model.checkpoint.save import save
    from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer

    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"say {number}", "completion": f"it is {number}"} for number in range(9)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    letters = [{"prompt": f"which {number}", "completion": "ab"[number % 2]} for number in range(12)]
    Path("letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in letters))
    for name, text in TASKS.items():
        Path(f"{name}.yaml").write_text(text)
    shutil.copytree(steady_base, "first")
    save(hybrid_ft.load(steady_base, from_scratch=True, seed=7), Path("second"), load_tokenizer(steady_base))
    return tmp_path


def run(models: list[str], **wanted: Any) -> tuple[int, str]:
    screen = io.StringIO()
    status = evaluate.run(
        models, Wanted(**{"tasks": list(TASKS), "out": Path("out")} | wanted), Console(file=screen, width=200)
    )
    return status, screen.getvalue()


def test_two_models_and_what_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [f"{name}.yaml" for name in TASKS]
    loaded = []
    load = evaluate.model_for_answers
    monkeypatch.setattr(evaluate, "model_for_answers", lambda path: loaded.append(path) or load(path))
    status, screen = run(["first", "second"], tasks=files[:2], forgetting=files[2:])
    assert status == 0 and loaded == ["first", "second"]
    table = json.loads(Path("out/results.json").read_text())
    assert table["models"] == ["first", "second"]
    by_name = {(measure["task"], measure["name"]): measure for measure in table["measures"]}
    assert set(by_name) == {("exact", "exact"), ("choice", "accuracy"), ("loss", "loss")}
    assert [by_name[key]["items"] for key in by_name] == [9, 10, 9]
    assert by_name["loss", "loss"]["forgetting"] and not by_name["exact", "exact"]["forgetting"]
    assert (
        "no difference seen, at most" in screen and "every answer scores 0" in screen and "reference  it is" in screen
    )
    # by hand: the accuracy of the lines kept
    kept = [json.loads(line) for line in next(Path("out/answers").glob("choice-first-*")).read_text().splitlines()]
    right = [line["answer"] == line["reference"] for line in kept]
    assert by_name["choice", "accuracy"]["scores"][0]["value"] == sum(right) / 10
    assert all(
        max(range(3), key=line["log_probs"].__getitem__) == ["a", "b", "cd"].index(line["answer"]) for line in kept
    )
    # a second start asks nobody, and says the same
    before = {file: file.read_bytes() for file in Path("out/answers").iterdir()}
    loaded.clear()
    assert "no difference seen" in run(["first", "second"], tasks=files[:2], forgetting=files[2:])[1]
    assert loaded == [] and before == {file: file.read_bytes() for file in Path("out/answers").iterdir()}
    # other weights are another model, a changed prompt another question
    shutil.copy("second/model.safetensors", "first/model.safetensors")
    run(["first"], tasks=files[:1])
    assert loaded == ["first"]
    run(["first"], tasks=files[:1], changes=["max_new_tokens=5"])
    assert loaded == ["first", "first"]
    with pytest.raises(InputError, match="first: is given twice"):
        run(["first", "first"], tasks=files[:1])


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


def test_a_screen_of_80_characters_cuts_nothing_off() -> None:
    screen = io.StringIO()
    models = ["tiny", "medical-think/merged", "runs-of-another-name/merged"]
    measure = Measure("gsm8k", "number", 1319, [Interval(0.5, 0.4, 0.6)] * 3, [Interval(0.0, -0.05, 0.05)] * 2)
    table.show(Console(file=screen, width=80), models, [measure], [])
    text = "".join(screen.getvalue().split())
    assert "…" not in text and "1,319" in text


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


@pytest.mark.slow
def test_a_kill_loses_no_answer(place: Path, root: Path) -> None:
    """kill -9 in the middle of the answers; the same command comes to the table of a run that nobody touched."""
    rows = [{"prompt": f"say {number} " + "x" * (number % 40), "completion": "y"} for number in range(600)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("exact.yaml").write_text("rows: rows.jsonl\nevaluator: exact\nmax_new_tokens: 48\n")

    def command(out: str) -> list[str]:
        base = [sys.executable, "-m", "hybrid_ft.cli", "evaluate", "first", "second", "--on", "exact.yaml"]
        return [*base, "--out", out, "--batch-tokens", "800"]

    env = os.environ | {"OMP_NUM_THREADS": "1"}
    assert subprocess.run(command("whole"), env=env, capture_output=True, check=False).returncode == 0
    killed = subprocess.Popen(command("cut"), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not any(file.stat().st_size for file in Path("cut").glob("answers/*")):
        assert killed.poll() is None
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    begun = sum(len(file.read_bytes().splitlines()) for file in Path("cut/answers").iterdir())
    assert 0 < begun < 1200
    assert subprocess.run(command("cut"), env=env, capture_output=True, check=False).returncode == 0
    for file in Path("whole/answers").iterdir():
        lines = file.read_text().splitlines()
        assert sorted(Path("cut/answers", file.name).read_text().splitlines()) == sorted(lines)
    assert Path("cut/results.json").read_text() == Path("whole/results.json").read_text()


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


def test_a_gate(place: Path) -> None:
    Path("limits.yaml").write_text("exact: 0.5\nloss: {loss: 0.1, drop: 0.5}\n")
    status, screen = run(["first"], tasks=["exact.yaml", "loss.yaml"], fail_below=Path("limits.yaml"))
    assert status == gate.BELOW
    assert "exact: exact is 0.0; must be at least 50.0" in screen and "must be at most 0.1000" in screen
    Path("limits.yaml").write_text("exact: 0\nloss: {loss: 99}\n")
    assert run(["first"], tasks=["exact.yaml", "loss.yaml"], fail_below=Path("limits.yaml"))[0] == 0
    for text, said in (
        ("exat: 0.5\n", "limits.yaml:1: exat: no such task is evaluated .*did you mean exact?"),
        ("exact: high\n", "limits.yaml:1: exact: got 'high'; must be a number"),
        ("exact: {exat: 1}\n", "limits.yaml: exact: no measure exat"),
    ):
        Path("limits.yaml").write_text(text)
        with pytest.raises(InputError, match=said):
            run(["first"], tasks=["exact.yaml"], fail_below=Path("limits.yaml"), out=Path("new"))
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("name", "change", "dropped"),
    [
        ("exact", (-0.2, -0.3, -0.05), True),
        ("exact", (-0.2, -0.4, 0.0), False),
        ("loss", (0.2, 0.1, 0.3), True),
        ("loss", (0.2, 0.01, 0.3), False),
    ],
)
def test_a_gate_s_drop_is_beyond_doubt(name: str, change: tuple[float, float, float], dropped: bool) -> None:
    measure = Measure("t", name, 10, [Interval(0.5, 0.4, 0.6)] * 2, [Interval(*change)], falls=name == "loss")
    assert bool(gate.failures({"t": {"drop": 0.03}}, [measure])) is dropped


def test_what_was_met_in_training(place: Path) -> None:
    words = "one two three four five six seven eight nine ten eleven twelve"
    questions = [
        words,
        "Seven eight, NINE ten eleven twelve thirteen fourteen",
        "say 3",
        "nothing of the kind here at all today",
    ]
    assert contamination.met(questions, [f"before {words} after", "please say 3 now"]) == [True, False, True, False]
    Path("recipe.yaml").write_text("model: {path: tiny}\ndata: {sources: [{path: rows.jsonl}]}\n")
    screen = run(["first"], tasks=["loss.yaml"], trained_on="recipe.yaml")[1]
    assert "met in training" in screen and "100.0 %" in screen
    with pytest.raises(InputError, match="must be a recipe, or a run's folder"):
        run(["first"], tasks=["loss.yaml"], trained_on="first")


def test_every_mistake_of_a_command_at_once(place: Path) -> None:
    Path("bad.yaml").write_text("rows: rows.jsonl\nevaluator: exat\n")
    with pytest.raises(InputError) as refused:
        run(["first"], tasks=["bad.yaml", "nothing.yaml", "loss.yaml", "loss.yaml"])
    assert len(str(refused.value).splitlines()) == 3
    assert not Path("out").exists()
    Path("file").touch()
    with pytest.raises(InputError, match="file: is a file"):
        run(["first"], tasks=["loss.yaml"], out=Path("file"))
    with pytest.raises(InputError, match=r"--set los:limit=3: los is not evaluated \(loss\); did you mean loss\?"):
        run(["first"], tasks=["loss.yaml"], changes=["los:limit=3"])
    with pytest.raises(InputError, match="lm_eval:gsm8k: lm_eval's tasks are for hybrid-ft evaluate"):
        named_tasks.named_tasks(["lm_eval:gsm8k"], (), (), "", False)


def test_changes_are_for_all_tasks_or_for_one(place: Path) -> None:
    files = ["exact.yaml", "choice.yaml"]
    changes = ["exact:max_new_tokens=3", "choice:shots=1", "about=x"]
    tasks = {name: task for name, task, _ in named_tasks.named_tasks(files, (), changes, "", False)}
    assert tasks["exact"].max_new_tokens == 3 and tasks["choice"].shots == 1
    assert {task.about for task in tasks.values()} == {"x"}
    changes = ["exact:samples=2", "exact:temperature=1"]
    assert named_tasks.named_tasks(files, (), changes, "", False)[0][1].samples == 2
