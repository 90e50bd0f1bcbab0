"""Commands that measure and show: what is typed is what the function is given."""

from pathlib import Path
from typing import Any

import pytest

from hybrid_ft import cli
from hybrid_ft.finetune.evaluation import evaluate
from hybrid_ft.finetune.reports import page, watch


def test_evaluate_is_asked_for_all_and_ends_on_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(evaluate, "run", lambda models, wanted, console: given.extend([models, wanted]) or 1)
    monkeypatch.setattr(page, "report_at_end", lambda out: f"report of {out}")
    words = ["evaluate", "first", "second", "--on", "gsm8k", "--on", "mbpp", "--forgetting", "mmlu", "--set", "a=1"]
    more = ["--limit", "5", "--samples", "2", "--run-code", "--trained-on", "r.yaml", "--fail-below", "limits.yaml"]
    assert cli.main([*words, *more, "--out", "there", "--batch-tokens", "99"]) == 1
    assert given[0] == ["first", "second"]
    assert given[1] == evaluate.Wanted(
        ["gsm8k", "mbpp"], ["mmlu"], ["a=1"], 5, 2, True, "r.yaml", Path("limits.yaml"), Path("there"), 99
    )
    assert "report of there" in capsys.readouterr().out


def test_without_a_task_nothing_is_evaluated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "run", lambda *given: pytest.fail("nothing was asked"))
    assert cli.main(["evaluate", "tiny"]) == 2
    said = capsys.readouterr().err
    assert "name a task, --on TASK" in said and "gsm8k" in said and said.count("\n") == 1


def test_watch_looks_once_or_every_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        watch, "watch", lambda run, console, every, once, price: given.append((run, every, once, price)) or 0
    )
    assert cli.main(["watch", "run"]) == 0
    assert cli.main(["watch", "run", "--every", "0.5", "--once", "--price", "2.5"]) == 0
    assert given == [(Path("run"), 2.0, False, None), (Path("run"), 0.5, True, 2.5)]


def test_a_report_lies_in_its_run_or_here_where_it_is_of_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = []
    monkeypatch.setattr(page, "write_report", lambda runs, out, price: prices.append(price) or out)
    for runs, place in (
        (["a"], Path("a", page.NAME)),
        (["a", "b"], Path(page.NAME)),
        (["a", "--out", "x.html", "--price", "2.5"], Path("x.html")),
    ):
        assert cli.main(["report", *runs]) == 0
        assert capsys.readouterr().out.strip() == str(place)
    assert prices == [None, None, 2.5]
