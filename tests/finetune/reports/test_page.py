"""The page of a run: what it says, that hostile texts are inert, that nothing is fetched."""

import base64
import hashlib
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_run import HOSTILE, made_run

from hybrid_ft import cli
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation.compared import Measure, as_json
from hybrid_ft.finetune.evaluation.statistics import Interval
from hybrid_ft.finetune.reports.chart import chart
from hybrid_ft.finetune.reports.differences import marked, recipe_rows
from hybrid_ft.finetune.reports.page import MOST_BYTES, report_at_end, write_report

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; every element is closed."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.raw = file.read_text(encoding="utf-8")
        self.feed(self.raw)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def check_inert(self) -> None:
        """No script but the page's own, nothing that is fetched, no handler."""
        tags = {tag for tag, _ in self.elements}
        assert self.raw.count("<script") == 1 and ("script", {}) in self.elements
        own = self.raw.partition("<script>")[2].partition("</script>")[0].encode()
        digest = base64.b64encode(hashlib.sha256(own).digest()).decode()
        assert not tags & {"img", "link", "iframe", "object", "embed", "form", "a", "base", "use", "image"}
        for _, attributes in self.elements:
            assert not [name for name in attributes if name.startswith("on") or name in ("src", "href", "xlink:href")]
        assert sum(tag == "style" for tag, _ in self.elements) == 1
        policy = [a["content"] for tag, a in self.elements if tag == "meta" and a.get("http-equiv")]
        assert policy == [f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"]
        assert "url(" not in self.raw and "@import" not in self.raw


def test_what_a_page_says(tmp_path: Path) -> None:
    run = made_run(tmp_path / "mine")
    page = Page(write_report([run], tmp_path / "page.html"))
    page.check_inert()
    for text in (
        "Held-out loss 2.5 before, 1.25 after.",
        "Exact answers to 30 held-out prompts: 6.7 % [1.8, 21.3] before, 93.3 % [78.7, 98.2] after: +86.7 points",
        "four five six: 2 (one two three:3)",
        "hybrid-ft sft",
        "torch 2.0, hybrid-ft 0.1",
        "learning_rate",
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
    classes = [a.get("class") for tag, a in page.elements if tag == "td"]
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


def test_no_spike_is_lost() -> None:
    values = [1.0] * 5000
    values[3333], values[4444] = 9.0, -5.0
    found = chart("loss", [("a", 0, list(map(float, range(5000))), values)])
    assert found is not None and found.curves[0].points.count(" ") < 850
    ups = [float(point.partition(",")[2]) for point in found.curves[0].points.split()]
    assert len({max(ups), min(ups)}) == 2 and sum(up == min(ups) for up in ups) == 1
    assert chart("none", [("a", 0, [], [])]) is None
    assert chart("one", [("a", 0, [3.0], [2.0])]) is not None


def test_words_that_differ() -> None:
    left, right = marked("it is red now", "it is blue now")
    assert [part for differs, part in left if differs] == ["red"]
    assert "".join(part for _, part in right) == "it is blue now"
    repeated = marked("before word " * 40, "after word " * 40)
    assert [part for differs, part in repeated[0][:4]] == ["before", " word ", "before", " word "]
    assert len(marked("a b " * 300, "c d " * 300)[0]) == 2  # too much to work out: all but the end
    rows = recipe_rows([{"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 1, "c": [1, 3]}, "d": None}])
    assert rows == [("a.c.1", ["2", "3"]), ("d", ["not set", "null"])]


def test_stages_have_a_table_of_their_answers(tmp_path: Path) -> None:
    """As a run of stages ends with on the screen: of base, SFT and DPO, each against the base."""
    place = tmp_path / "mine"
    for stage in ("1-sft", "2-dpo"):
        made_run(place / stage)
    (place / "pipeline.json").write_text("{}")
    for model, right in (("base", 0), ("1-sft", 20), ("2-dpo", 21)):
        lines = [
            {"source": "some/held.jsonl", "origin": f"held:{n}", "exact": n < right, "reference": '{"a": null}'}
            | {"answer": '{"a": null}' if n < right else f'{{"a": {n}}}'}
            for n in range(24)
        ]
        (place / f"answers-{model}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report([place], tmp_path / "page.html"))
    page.check_inert()
    assert "held.jsonl: exact answers" in page.text and "held.jsonl: invented values" in page.text
    assert "+83.3" in page.text and "-87.5" in page.text and "83.3 [" in page.text
    classes = [a.get("class") for tag, a in page.elements if tag == "td"]
    assert classes.count("better") == 4
    # what the last stage changed comes first
    assert page.text.index("held:20") < page.text.index("held:0")
    (place / "answers-2-dpo.jsonl").write_text("")
    assert "held.jsonl" not in Page(write_report([place], tmp_path / "page.html")).text


def test_a_damaged_table(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"measures": [{}]}')
    with pytest.raises(InputError, match="results.json: is damaged"):
        write_report([tmp_path], tmp_path / "page.html")
