"""The whole command: two models, one table, answers that are kept, gates."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from evaluate_runs import TASKS, run

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation import contamination, evaluate, named_tasks


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
