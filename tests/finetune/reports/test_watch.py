"""Watching a run: what is seen as it goes, over a share that may be away, until it ends."""

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hybrid_ft import cli
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation.files import RESULTS
from hybrid_ft.finetune.reports.text_chart import text_chart
from hybrid_ft.finetune.reports.watch import Metrics, watch

TEXTS = ["fine", "\x1b]0;title\x07\x1b[31mred \u202e", "hf_" + "aB3" * 9]


def begun(place: Path, **record: Any) -> Path:
    place.mkdir(parents=True)
    (place / "run.json").write_text(json.dumps({"stage": "sft", "identity": {}, "steps": 40} | record))
    for when in ("before", "after"):
        rows = [{"origin": f"held:{n}", "answer": f"{text} {when}", "reference": text} for n, text in enumerate(TEXTS)]
        (place / f"answers-{when}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "answers-after.jsonl").unlink()
    return place


def add(place: Path, *steps: int, end: str = "\n") -> None:
    with (place / "metrics.jsonl").open("a") as file:
        for step in steps:
            line = {"step": step, "loss": 3 / step, "tokens": 100 * step, "seconds": 2.0, "learning_rate": 1e-3}
            file.write(json.dumps(line) + end)


def append(place: Path, text: str) -> None:
    with (place / "metrics.jsonl").open("a") as file:
        file.write(text)


def once(place: Path) -> str:
    screen = io.StringIO()
    assert watch(place, Console(file=screen, width=120, force_terminal=True), 1.0, True) == 0
    return screen.getvalue()


def test_a_run_as_it_stands(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    add(run, *range(1, 21))
    append(run, '{"step": 21, "lo')
    seen = once(run)
    for text in (
        "step 20 of 40",
        "at work, or stopped",
        "loss 0.15",
        "2,000 tokens",
        "40 s of steps left",
        "fine before",
    ):
        assert text in seen, text
    assert "\x1b]0" not in seen and "[31mred" in seen and "\x1b[31mred" not in seen and "\u202e" not in seen
    assert TEXTS[2] not in seen


def test_it_ends_when_the_run_does(tmp_path: Path) -> None:
    """In lines where there is no terminal; a folder that is away for a moment, and metrics that
    a resumed run rewrote."""
    run = begun(tmp_path / "run")
    add(run, 1, 2, 3)
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:
            run.rename(tmp_path / "away")
        if len(looks) == 2:
            (tmp_path / "away").rename(run)
            (run / "metrics.jsonl").unlink()
            add(run, 1, 2)
        if len(looks) == 3:
            add(run, 3, 4)
            (run / "run.json").write_text(
                json.dumps({"stage": "sft", "identity": {}, "finished": {"step": 4}, "steps": 4})
            )
        assert len(looks) < 4

    screen = io.StringIO()
    assert watch(run, Console(file=screen, width=300), 0.5, False, sleep) == 0
    assert [line.rpartition("run: ")[2] for line in screen.getvalue().splitlines()] == [
        "step 3/40  loss 1",
        "step 2/40  loss 1.5",
        "step 4/4  loss 0.75  finished at step 4",
    ]
    (run / "run.json").write_text(json.dumps({"stage": "sft", "identity": {}}))
    (run / "not-finite-step-5.json").touch()
    assert watch(run, Console(file=io.StringIO(), force_terminal=True, width=80), 0.5, False) == 4


def test_stages_and_steps_of_a_suite(tmp_path: Path) -> None:
    place = tmp_path / "stages"
    begun(place / "1-sft", finished={"step": 3})
    run = begun(place / "2-dpo", stage="dpo")
    (place / "pipeline.json").write_text("{}")
    add(run, 1)
    append(run, '{"step": 1, "suite/mine/number": 0.25}\n')
    task = run / "suite/step-1/mine"
    task.mkdir(parents=True)
    (task / "0.jsonl").write_text(json.dumps({"origin": "rows:7", "answer": "forty two", "reference": "42"}) + "\n")
    seen = once(place)
    assert "2-dpo" in seen and "mine: number 0.25" in seen and "forty two" in seen and "mine, step 1, rows:7" in seen


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    add(run, 1, 2)
    metrics = Metrics(run / "metrics.jsonl")
    metrics.read()
    add(run, 3, end="")
    metrics.read()
    assert [line["step"] for line in metrics.lines] == [1, 2]
    append(run, "\n[1]\nnot json\n")
    metrics.read()
    assert [line["step"] for line in metrics.lines] == [1, 2, 3]
    assert metrics.series("loss") == ([1, 2, 3], [3, 1.5, 1])


def test_a_curve_of_dots() -> None:
    """Every value is where it belongs, to a dot; a spike of one step among thousands is there."""
    flat = text_chart("loss", [1, 2, 3], [2.0, 2.0, 2.0], 30)
    assert flat[0] == "loss 2" and len(flat) == 5
    values = [1.0] * 5000
    values[2500] = 9.0
    lines = text_chart("loss", list(range(5000)), values, 40, height=4)
    assert lines[1].startswith("        9 ") and lines[4].startswith("        1 ")
    tops = [at for at, sign in enumerate(lines[1][10:]) if sign != "\u2800"]
    assert tops and abs(tops[0] - 15) <= 1 and len(tops) <= 2
    assert all(sign != "\u2800" for sign in lines[4][10:])
    falling = text_chart("x", list(range(8)), [7.0 - n for n in range(8)], 14, height=2)
    # eight values on eight columns and eight levels: a diagonal
    bits = [[ord(sign) - 0x2800 for sign in line[10:]] for line in falling[1:]]
    assert bits == [[0x01 | 0x10, 0x04 | 0x80, 0, 0], [0, 0, 0x01 | 0x10, 0x04 | 0x80]]
    assert not any(math.isnan(ord(sign)) for line in lines for sign in line)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["watch", "nowhere", "--once"]) == 2
    assert capsys.readouterr().err == "error: nowhere: there is no such folder; name a run's, the recipe's output\n"
    Path("empty").mkdir()
    assert cli.main(["watch", "empty", "--once"]) == 0 and "has not begun" in capsys.readouterr().out
    Path("empty/.lock").touch()
    Path("empty/mine.txt").touch()
    assert cli.main(["watch", "empty", "--once"]) == 0 and "has not begun" in capsys.readouterr().out
    run = begun(Path("run"))
    for place, files, what in [
        ("model", ["config.json", "model.safetensors"], "is the folder of a model, not of a run"),
        ("adapter", ["adapter_config.json"], "is the folder of a model, not of a run"),
        ("files", ["a.txt", "b.txt"], "holds a.txt, b.txt and not a run"),
        ("more", ["a", "b", "c", "d"], "holds a, b, c, ... and not a run"),
        ("several", [f"{n}/run.json" for n in range(5)] + ["5/pipeline.json"], "holds runs (0, 1, 2, 3, 4, ...) and"),
        ("stages", ["one/pipeline.json"], "holds runs (one) and is not one itself"),
        (
            "judged",
            [".lock", RESULTS],
            "is the folder of an evaluation, which has no curves; hybrid-ft report judged shows",
        ),
        (".", [], "holds runs (run"),
    ]:
        Path(place).mkdir(exist_ok=True)
        for file in files:
            Path(place, file).parent.mkdir(exist_ok=True)
            Path(place, file).touch()
        assert cli.main(["watch", place]) == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"error: {place}: {what}") and said.err.count("\n") == 1 and not said.out
    add(run, 1)
    assert cli.main(["watch", "run", "--once"]) == 0
    assert "run  sft, step 1 of 40" in capsys.readouterr().out
    shutil.rmtree(run)
    with pytest.raises(InputError):
        watch(run, Console(file=io.StringIO()), 1.0, True)
