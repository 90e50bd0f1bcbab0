"""``evaluate.suite``: a recipe's tasks before, on the way and after, in the arithmetic of the training, resumable."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_helpers import Killed, timeless
from safetensors.torch import load_file

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation import suite as suites

STEPS = {"steps": 6, "save_every": 4, "keep": 1, "learning_rate": 3e-2, "schedule": "constant"}


@pytest.fixture
def tasks(tmp_path: Path) -> Any:
    """``tasks(every=2, best="loss")``: the section, of a loss and a choice over rows that were not trained on."""
    rows = [{"prompt": f"say {number}", "completion": "ab"[number % 2]} for number in range(8)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "loss.yaml").write_text(f"rows: {tmp_path}/few.jsonl\nevaluator: loss\n")
    (tmp_path / "letter.yaml").write_text(f"rows: {tmp_path}/few.jsonl\nevaluator: choice\noptions: [a, b]\n")
    both = [str(tmp_path / f"{name}.yaml") for name in ("loss", "letter")]
    return lambda **more: {"suite": {"tasks": both[:1], "forgetting": both[1:]} | more}


def measured(run: Any) -> dict[int, float]:
    return run.metrics("suite/loss/loss")


def table(run: Any) -> dict[tuple[str, str], Any]:
    found = json.loads((run.folder / "suite/results.json").read_text())
    assert found["models"] == ["before", "after"]
    return {(one["task"], one["name"]): one for one in found["measures"]}


def test_before_on_the_way_and_after(start: Any, tasks: Any, tmp_path: Path) -> None:
    """The last score is that of the command on the saved model; without the tasks the weights are the same."""
    from rich.console import Console

    from hybrid_ft.finetune.evaluation import evaluate

    run = start(train=STEPS, evaluate=tasks(every=2))
    assert list(measured(run)) == [2, 4, 6]
    by_name = table(run)
    assert by_name["letter", "accuracy"]["forgetting"] and by_name["loss", "loss"]["items"] == 8
    first, last = (one["value"] for one in by_name["loss", "loss"]["scores"])
    assert last == pytest.approx(measured(run)[6], rel=1e-9) and first != last
    assert "loss: loss" in run.screen and "suite: " not in run.screen
    page = (run.folder / "report.html").read_text()
    assert "letter: accuracy" in page and "<figcaption>loss: loss " in page

    wanted = evaluate.Wanted([str(tmp_path / "loss.yaml")], out=tmp_path / "out")
    with (tmp_path / "screen").open("w") as screen:
        evaluate.run([str(run.folder / "model")], wanted, Console(file=screen))
    again = json.loads((tmp_path / "out/results.json").read_text())["measures"][0]["scores"][0]["value"]
    assert again == pytest.approx(last, rel=1e-5)

    without = start("without", train=STEPS)
    weights = [(one.folder / "model/model.safetensors").read_bytes() for one in (run, without)]
    assert weights[0] == weights[1]


def test_a_task_chooses_the_result(start: Any, tasks: Any) -> None:
    run = start(train=STEPS, evaluate=tasks(every=1, best="loss"))
    losses = measured(run)
    step = min(losses, key=losses.__getitem__)
    assert step < 6, "the last step is the best one: this run shows nothing"
    assert f"the weights of checkpoint-{step}, with the best score in loss" in run.screen
    best, result = (
        load_file(run.folder / place / "model.safetensors") for place in (f"checkpoints/checkpoint-{step}", "model")
    )
    assert all((best[name] == result[name]).all() for name in best)
    assert table(run)["loss", "loss"]["scores"][1]["value"] == pytest.approx(losses[step], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_run_cut_in_a_measure_ends_as_the_whole_one(
    start: Any, tasks: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    section = tasks(every=2, best="loss")
    whole = start("whole", train=STEPS, evaluate=section)
    score = suites.score_missing
    calls: list[Any] = []

    def cut(task: Any, share: Any, kept: Any, model: Any, tokenizer: Any, budget: Any, tell: Any) -> int:
        calls.append(kept.path)
        if "step-4" in str(kept.path):
            if how == "kill":
                raise Killed
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return score(task, share, kept, model, tokenizer, budget, tell)

    with monkeypatch.context() as patched:
        patched.setattr(suites, "score_missing", cut)
        if how == "kill":
            with pytest.raises(Killed):
                start("cut", train=STEPS, evaluate=section)
        else:
            assert start("cut", train=STEPS, evaluate=section).status == 75
    assert any("step-4" in str(path) for path in calls)
    run = start("cut", train=STEPS, evaluate=section)
    assert run.status == 0
    # a measure that was stopped is ended behind the line of its step
    lines = [sorted(timeless(one.folder), key=lambda line: (line["step"], "loss" in line)) for one in (run, whole)]
    assert lines[0] == lines[1]
    results = [(one.folder / "suite/results.json").read_text() for one in (run, whole)]
    assert results[0].replace("/cut/", "/whole/") == results[1]
    models = [(one.folder / "model/model.safetensors").read_bytes() for one in (run, whole)]
    assert models[0] == models[1]


def test_rows_shared_by_processes_are_the_rows_of_one(start: Any, tasks: Any, tmp_path: Path) -> None:
    """Two processes, one after the other, answer their shares into files of their own; the third reads both."""
    from types import SimpleNamespace

    from hybrid_ft.finetune.generation.generate import load_for_answers
    from hybrid_ft.finetune.recipe.schema import Suite as Section

    run = start(train={"steps": 1})
    model, tokenizer = load_for_answers(str(run.folder / "model"))
    suite = suites.Suite.of(Section(**tasks()["suite"]), tokenizer, tmp_path / "one")
    whole = suite.measure(model, 0)
    two = suites.Suite(suite.tasks, suite.items, [], tokenizer, tmp_path / "two")
    for rank in (1, 0):
        stub: Any = SimpleNamespace(count=2, rank=rank, wait=lambda: None, any=lambda flag: flag)
        if rank:
            with pytest.raises(KeyError):  # the other half is not there yet
                two.measure(model, 0, stub)
            two.tasks, two.items = two.tasks[::-1], two.items[::-1]
            with pytest.raises(KeyError):
                two.measure(model, 0, stub)
            two.tasks, two.items = two.tasks[::-1], two.items[::-1]
    shared = two.measure(model, 0, stub)
    assert shared and whole
    for one, other in zip(whole, shared, strict=True):
        scores = [[line["scores"] for line in found.lines] for found in (one, other)]
        for a, b in zip(*scores, strict=True):
            assert a == pytest.approx(b, abs=1e-6)
    files = sorted(str(file.relative_to(tmp_path / "two")) for file in (tmp_path / "two").rglob("*.jsonl"))
    assert files == [f"step-0/{task}/{rank}.jsonl" for task in ("letter", "loss") for rank in (0, 1)]
    shutil.rmtree(tmp_path / "two")


def test_what_cannot_be_is_said_before_anything_is_written(start: Any, tmp_path: Path) -> None:
    from hybrid_ft.finetune.recipe.load import load_recipe

    (tmp_path / "few.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "t.yaml").write_text(f"rows: {tmp_path}/few.jsonl\nevaluator: code\nprogram: '{{{{ answer }}}}'\n")
    head = f"model: {{path: tiny}}\ndata: {{sources: [{{path: {tmp_path}/few.jsonl}}]}}\n"
    for section, complaint in (
        ("tasks: [gsm9k]", r"r.yaml:3: evaluate.suite.tasks.0: got 'gsm9k'; must be a shipped name .*gsm8k"),
        ("tasks: [gsm8k], best: gsm8k", "evaluate.suite.best: got 'gsm8k'; needs scores on the way"),
        ("tasks: [gsm8k], best: gsm, every: 5", "got 'gsm'; must be one of gsm8k; did you mean gsm8k"),
        ("tasks: [gsm8k], forgetting: [gsm8k]", "a task gsm8k is there already"),
    ):
        (tmp_path / "r.yaml").write_text(f"{head}evaluate: {{suite: {{{section}}}}}\n")
        with pytest.raises(InputError, match=complaint):
            load_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(f"{head}evaluate: {{suite: {{tasks: [gsm8k], every: 2}}}}\n")
    with pytest.raises(InputError, match=r"evaluate.suite.every: got 2; a model in pieces"):
        load_recipe(tmp_path / "r.yaml", ["train.sharded=true"])
    with pytest.raises(
        InputError, match=r"runs code that the model writes; allow it with evaluate.suite.run_code: true"
    ):
        start(evaluate={"suite": {"tasks": [str(tmp_path / "t.yaml")]}})
    assert not (tmp_path / "run").exists()
