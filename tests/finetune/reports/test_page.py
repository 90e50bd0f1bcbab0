"""The page of a run: what it says, that hostile texts are inert, that nothing is fetched."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from made_run import HOSTILE, made_run

from hybrid_ft import cli
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation.compared import as_json
from hybrid_ft.finetune.evaluation.measure import Measure
from hybrid_ft.finetune.evaluation.statistics import Interval
from hybrid_ft.finetune.reports.page import MOST_BYTES, report_at_end, write_report


def test_what_a_page_says(tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine")
    page = Page(write_report([run], tmp_path / "page.html"))
    page.check_inert()
    for text in (
        "Held-out loss 2.5 before, 1.25 after.",
        "Exact answers to 30 held-out prompts: 6.7 % [1.8, 21.3] before, 93.3 % [78.7, 98.2] after: +86.7 points",
        "four five six: 2 (one two three:3)",
        "one two three asked 5",
        "hybrid-ft sft",
        "torch 2.0, hybrid-ft 0.1",
        "learning_rate",
        "1 January 2026, 00:00 UTC",
        "4,000",
        "1 min 00 s",
        "3,000",
        "1.00 GiB",
    ):
        assert text in page.text, text
    titles = [a.get("aria-label") for tag, a in page.elements if tag == "svg"]
    assert titles[:5] == ["loss", "held-out loss", "learning rate", "gradient norm", "tokens per second"]
    lines = [a["points"] for tag, a in page.elements if tag == "polyline"]
    # readers that leave a page's style out of its pictures would fill what a curve encloses
    assert all(a["fill"] == "none" and a["stroke"] for tag, a in page.elements if tag == "polyline")
    assert all(re.fullmatch(r"[\d. ,e+-]+", line or "") for line in lines)
    # a value that is not finite is no point
    assert len(lines[3].split()) == 29 and "nan" not in page.raw
    assert "<mark>before</mark>" in page.raw and "<mark>after</mark>" in page.raw
    # what changed between right and wrong comes before what did not
    assert page.text.index("held:5") < page.text.index("held:0")


def test_padding_has_a_panel_where_there_is_some(tmp_path: Path) -> None:
    """Packed rows have none, and a line at 0 says nothing."""
    for share in (0.0, 0.25):
        run = made_run(tmp_path / f"padded-{share}")
        lines = [json.dumps({"step": step, "loss": 1.0, "padding": share}) for step in (1, 2, 3)]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        page = Page(write_report([run], tmp_path / "page.html"))
        titles = [a.get("aria-label") for tag, a in page.elements if tag == "svg"]
        assert titles == ["loss", *["padding"] * bool(share)]


def test_what_a_page_of_pairs_says(tmp_path: Path) -> None:
    run = made_run(tmp_path / "pairs")
    record = json.loads((run / "run.json").read_text())
    for when, share in (("before", 0.5), ("finished", 0.75)):
        record[when]["held_out"] |= {"pairs": 2000.0, "rewards/accuracies": share}
    (run / "run.json").write_text(json.dumps(record))
    line = {"step": 8, "eval_rewards/accuracies": 0.75, "eval_accuracy_longer": 0.25, "eval_accuracy_shorter": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    page = Page(write_report([run], tmp_path / "page.html"))
    assert "Held-out pairs in the right order: 50.0 % before, 75.0 % after, of 2,000." in page.text
    titles = [a.get("aria-label") for tag, a in page.elements if tag == "svg"]
    assert titles[0] == "held-out pairs in the right order" and len(titles) == 3


def test_what_a_page_of_a_reward_model_and_of_kto_says(tmp_path: Path) -> None:
    """Held-out accuracy, by the name of what it counts; the lengths of prompts and answers."""
    for stage, count, text in (
        ("reward", "pairs", "Held-out pairs in the right order: 50.0 % before, 75.0 % after, of 2,000."),
        ("kto", "rows", "Held-out answers on the right side of the reference: 50.0 % before, 75.0 % after, of 2,000."),
    ):
        run = made_run(tmp_path / stage)
        record = json.loads((run / "run.json").read_text())
        for when, share in (("before", 0.5), ("finished", 0.75)):
            record[when]["held_out"] |= {count: 2000.0, "accuracy": share}
        length = record["data"]["account"]["train"]["length"]
        record["data"]["account"]["train"]["length"] = {"prompt": length, "chosen": length | {"longest": 4321}}
        (run / "run.json").write_text(json.dumps(record))
        page = Page(write_report([run], tmp_path / "page.html"))
        assert text in page.text
        assert "train, prompt" in page.text and "train, chosen" in page.text and "4,321" in page.text


def test_a_run_that_was_stopped_says_how_far_it_came(tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine")
    record = json.loads((run / "run.json").read_text()) | {"steps": 1920, "finished": None}
    (run / "run.json").write_text(json.dumps(record))
    text = Page(write_report([run], tmp_path / "page.html")).text
    assert "30 of 1,920" in text and "not finished" in text


def test_what_a_page_of_an_evaluation_says(tmp_path: Path) -> None:
    """Warnings, the command, versions; what differs from the first model's answer is marked; the
    share of rows met in training once for a task."""
    some = [Interval(0.5, 0.4, 0.6)] * 2
    measures = [Measure("json", name, 24, some, [Interval(0.0, -0.05, 0.05)], met=0.25) for name in ("fields", "whole")]
    more: dict[str, Any] = {
        "warnings": ["a: cut <b>"],
        "command": "hybrid-ft evaluate a b",
        "versions": {"version.torch": "2.0"},
    }
    example = {"task": "json", "origin": "x:1", "question": "q", "reference": "r", "answers": ["one two", "one three"]}
    (tmp_path / "results.json").write_text(as_json(["a", "b"], measures, examples=[example], **more))
    page = Page(write_report([tmp_path], tmp_path / "page.html"))
    for text in ("Warning: a: cut <b>", "hybrid-ft evaluate a b", "torch 2.0", "To repeat"):
        assert text in page.text, text
    assert "one <mark>two</mark>" in page.raw and "one <mark>three</mark>" in page.raw
    assert page.text.count("25.0 % of the rows met in training") == 1
    assert "50.0 [40.0, 60.0]" in page.text


def test_hostile_texts_are_text(tmp_path: Path) -> None:
    run = made_run(tmp_path / "<b>run", hostile=True, output="<script>x</script>")
    evaluation = tmp_path / "<table onclick=x>"
    evaluation.mkdir()
    some = Interval(0.5, 0.4, 0.6)
    examples = [{"task": HOSTILE[0], "origin": HOSTILE[1], "question": HOSTILE[2], "reference": HOSTILE[4]} | {
        "answers": HOSTILE[:2], "scores": [0, 1]}]  # fmt: skip
    table = as_json(HOSTILE[:2], [Measure(HOSTILE[5], HOSTILE[2], 9, [some] * 2, [some])], examples=examples)
    (evaluation / "results.json").write_text(json.dumps(json.loads(table)))
    page = Page(write_report([run, made_run(tmp_path / "other"), evaluation], tmp_path / "page.html"))
    page.check_inert()
    for text in HOSTILE[:4]:
        assert text in page.text
    assert not re.search("[\x00\x1b\u202e\ud800]", page.raw)


def test_secrets_are_masked(tmp_path: Path) -> None:
    secret = "hf_" + "aB3" * 9
    page = Page(write_report([made_run(tmp_path / "run", note=secret)], tmp_path / "page.html"))
    assert secret not in page.raw and "***" in page.raw


def test_several_runs_over_one_another(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / f"run{n}", steps=20 + n, train={"learning_rate": 0.1 * (n + 1)}) for n in range(3)]
    page = Page(write_report(runs, tmp_path / "page.html"))
    assert "What differs in their recipes" in page.text and "train.learning_rate" in page.text
    assert "model.path" not in page.text.split("What differs")[1].split("Curves")[0]
    first = page.raw[page.raw.index('aria-label="loss"') :].split("</svg>")[0]
    assert first.count("<polyline") == 3 and all(f"run{n}" in first for n in range(3))


@pytest.mark.slow
def test_a_page_of_large_runs_stays_small(tmp_path: Path) -> None:
    runs = []
    for number in range(6):
        runs.append(made_run(tmp_path / f"run{number}", steps=5000))
        for when in ("before", "after"):
            rows = [{"origin": "x", "answer": f"{when} word " * 900, "reference": "y" * 5000, "exact": False}] * 200
            (runs[-1] / f"answers-{when}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert write_report(runs, tmp_path / "page.html").stat().st_size < MOST_BYTES


def test_an_evaluation_s_table(tmp_path: Path) -> None:
    better, same = Interval(0.1, 0.05, 0.15), Interval(0.0, -0.02, 0.02)
    measures = [
        Measure("gsm8k", "number", 100, [Interval(0.5, 0.4, 0.6)] * 2, [better], met=0.25),
        Measure(
            "replay",
            "loss",
            100,
            [Interval(1.5, -math.inf, math.inf)] * 2,
            [same],
            forgetting=True,
            bounded=False,
            falls=True,
        ),
    ]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text(as_json(["base", "mine"], measures, examples=[]))
    page = Page(write_report([tmp_path / "out"], tmp_path / "page.html"))
    page.check_inert()
    assert "+10.0 [+5.0, +15.0]" in page.text and "no difference seen, at most 0.0200" in page.text
    assert "25.0 % of the rows met in training" in page.text
    assert page.text.index("forgetting") < page.text.index("replay: loss")
    # a model has one column, in which the difference stands below the score
    assert sum(tag == "th" for tag, _ in page.elements) == 4 and "50.0 [40.0, 60.0]+10.0" in page.text
    classes = [a.get("class") for tag, a in page.elements if tag == "span"]
    assert classes.count("better") == 1 and "worse" not in classes


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run = made_run(tmp_path / "run")
    assert cli.main(["report", "run"]) == 0 and (run / "report.html").is_file()
    assert capsys.readouterr().out == "run/report.html\n"
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "pipeline.json").write_text("{}")
    assert cli.main(["report", "stages"]) == 2
    shutil.copytree(run, tmp_path / "stages" / "1-sft")
    assert cli.main(["report", "stages", "run"]) == 0
    assert "stages/1-sft" in (tmp_path / "report.html").read_text()
    capsys.readouterr()
    for arguments, said in (
        (["nowhere"], "error: nowhere: must be the folder of a run"),
        (["run", "--out", "no/such/page.html"], "error: no/such/page.html: its folder does not exist"),
        (["run", "--out", "run"], "error: run: is a folder; name a file"),
        (["run"] * 13, "error: 13 runs; a report holds 12 at most"),
    ):
        assert cli.main(["report", *arguments]) == 2
        assert capsys.readouterr().err.startswith(said)
    (run / "run.json").write_text("{")
    assert cli.main(["report", "run"]) == 2
    assert report_at_end(run).startswith("report    could not be made (")


def test_a_real_run_ends_with_its_page(start: Any, tmp_path: Path) -> None:
    done = start(held_out=4, evaluate={"answers": 2, "every": 2, "samples": ["hello"]})
    assert f"report    {tmp_path / 'run' / 'report.html'}" in done.screen
    page = Page(done.folder / "report.html")
    page.check_inert()
    assert "Held-out loss" in page.text and "12 rows" in page.text and "hello" in page.text


def test_a_damaged_table(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"measures": [{}]}')
    with pytest.raises(InputError, match="results.json: is damaged"):
        write_report([tmp_path], tmp_path / "page.html")
