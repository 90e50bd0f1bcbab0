"""A report in a headless Chromium: in the light and the dark, on a phone, without a script."""

import json
from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from made_run import HOSTILE, made_run

from hybrid_ft.finetune.evaluation.compared import as_json
from hybrid_ft.finetune.evaluation.measure import Measure
from hybrid_ft.finetune.evaluation.statistics import Interval
from hybrid_ft.finetune.reports.page import write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.FOUND is None, reason="no Chromium")]

SCREENS = {"wide": {}, "dark": {"dark": True}, "phone": {"width": 390}, "dark phone": {"width": 390, "dark": True}}
TALLEST = "Math.max(...[...document.querySelectorAll('th')].map(one => one.clientHeight))"
WIDTHS = "[document.documentElement.scrollWidth, innerWidth]"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Tab]:
    with chromium.tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two runs and an evaluation of three models, one run full of hostile texts."""
    place = tmp_path_factory.mktemp("page")
    runs = [made_run(place / "mine", steps=200), made_run(place / "a-hostile-run", hostile=True, steps=90)]
    score = [Interval(0.5, 0.4, 0.6)] * 3
    changes = [Interval(0.1, 0.05, 0.15), Interval(0.0, -0.05, 0.05)]
    measures = [Measure(HOSTILE[0], "number", 100, score, changes)]
    examples = [{"task": HOSTILE[1], "origin": "x:1", "question": HOSTILE[2], "reference": "y" * 300}]
    examples[0] |= {"answers": HOSTILE[3:6]}
    (place / "evaluation").mkdir()
    table = as_json(
        ["allenai/a-model-of-a-long-name", "runs/mine/adapter", "runs/another-one/merged"], measures, examples=examples
    )
    (place / "evaluation" / "results.json").write_text(json.dumps(json.loads(table)))
    return write_report([*runs, place / "evaluation"], place / "page.html")


def test_it_fits_and_asks_nobody(tab: chromium.Tab, page: Path) -> None:
    tab.requests.clear()
    tab.said.clear()
    papers = set()
    for screen in SCREENS.values():
        tab.look(**screen)
        tab.open(page)
        wide, shown = tab.value(WIDTHS)
        assert wide <= shown, screen
        assert tab.value(TALLEST) < 120, screen  # a heading whose column is too narrow has a letter a line
        paper, ink = tab.value(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        papers.add((screen.get("dark", False), paper, ink))
        assert "Held-out loss 2.5 before" in tab.value("document.body.innerText")
    assert len(papers) == 2 and len({paper for _, paper, _ in papers}) == 2
    assert set(tab.requests) == {page.as_uri()}
    assert tab.said == []


def test_two_models_scores_fit_on_a_phone(tab: chromium.Tab, tmp_path: Path) -> None:
    """The second's difference, which the table is for, stands on the screen and not beside it."""
    some = Interval(0.5, 0.4, 0.6)
    measures = [Measure("json-records", "fields", 24, [some] * 2, [Interval(0.0, -0.05, 0.05)])]
    (tmp_path / "results.json").write_text(json.dumps(json.loads(as_json(["before", "after"], measures, examples=[]))))
    tab.look(width=390)
    tab.open(write_report([tmp_path], tmp_path / "page.html"))
    right = "Math.max(...[...document.querySelectorAll('.scores td')].map(one => one.getBoundingClientRect().right))"
    assert tab.value(right) <= 390


def test_hostile_texts_do_nothing(tab: chromium.Tab, page: Path) -> None:
    """They stand there as text, and the page's policy would not run them if they did not."""
    tab.look()
    tab.open(page)
    text = tab.value("document.documentElement.textContent")
    assert all(hostile in text for hostile in HOSTILE[:4])
    assert tab.value("document.scripts.length") == 1 and tab.value("document.images.length") == 0
    tab("Runtime.evaluate", expression="window.ran = 0; document.body.append(document.createElement('script'))")
    tab.value("document.body.lastChild.textContent = 'window.ran = 1'")
    assert tab.value("window.ran") == 0
    assert any("Content Security Policy" in said for said in tab.said)


def test_values_at_the_pointer(tab: chromium.Tab, page: Path) -> None:
    """The values of the metrics, at the step nearest to the pointer; the ends again when it leaves."""
    tab.look()
    tab.open(page)
    ends = tab.value("[...document.querySelector('figure').querySelectorAll('.key b')].map(end => end.textContent)")
    box = tab.value(
        "(svg => { const b = svg.getBoundingClientRect(); svg.scrollIntoView(); return b.toJSON() })(document.querySelector('svg'))"
    )
    box = tab.value("document.querySelector('svg').getBoundingClientRect().toJSON()")
    lines = [json.loads(line) for line in (page.parent / "mine" / "metrics.jsonl").read_text().splitlines()[:200]]
    for share in (0.3, 0.6):
        x = box["x"] + box["width"] * (58 + share * (450 - 58)) / 460
        tab("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=box["y"] + box["height"] / 2)
        said = tab.value("document.querySelector('output').textContent")
        step = int(said.removeprefix("step "))
        assert step == pytest.approx(1 + share * 199, abs=2)
        values = tab.value("[...document.querySelector('figure').querySelectorAll('.key b')].map(b => b.textContent)")
        assert float(values[0]) == pytest.approx(lines[step - 1]["loss"], abs=3e-4)
    tab("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert tab.value("document.querySelector('output').textContent") == ""
    after = tab.value("[...document.querySelector('figure').querySelectorAll('.key b')].map(end => end.textContent)")
    assert after == ends


def test_it_is_read_without_a_script(tab: chromium.Tab, page: Path) -> None:
    tab.look()
    tab.open(page)
    whole = tab.value("document.body.innerText")
    tab("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page)
        assert tab.value("document.body.innerText") == whole
        assert tab.value("document.querySelectorAll('polyline').length") > 10
    finally:
        tab("Emulation.setScriptExecutionDisabled", value=False)


def test_on_paper(tab: chromium.Tab, page: Path) -> None:
    """Ink on white whatever the screen is, and no more than a few pages."""
    import base64

    tab.look(dark=True, media="print")
    tab.open(page)
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    paper = base64.b64decode(tab("Page.printToPDF")["data"])
    assert 1 <= paper.count(b"/Type /Page\n") <= 30
    tab.look()
