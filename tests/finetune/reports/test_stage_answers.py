"""The answers of stages' models, as a table."""

import json
from pathlib import Path

from html_page import Page
from made_run import made_run

from hybrid_ft.finetune.reports.page import write_report


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
    classes = [a.get("class") for tag, a in page.elements if tag == "span"]
    assert classes.count("better") == 4
    # what the last stage changed comes first
    assert page.text.index("held:20") < page.text.index("held:0")
    (place / "answers-2-dpo.jsonl").write_text("")
    assert "held.jsonl" not in Page(write_report([place], tmp_path / "page.html")).text
