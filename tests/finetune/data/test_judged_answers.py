"""Judged answers from files to tokens: labels of every spelling, pairs taken apart, long rows, and the account."""

import json
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.prepare import prepare


@pytest.fixture
def prepared(tmp_path: Path, tiny_tokenizer: Any) -> Any:
    """``prepared(rows, source={...}, data={...}, kto={...})``."""

    def go(rows: list[dict[str, Any]], source: Any = None, refuse: bool = True, **sections: Any) -> Any:
        from hybrid_ft.finetune.recipe.schema import Recipe

        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        recipe = Recipe.model_validate(
            {
                "model": {"path": "tiny"},
                "data": {"sources": [{"path": str(path)} | (source or {})], "max_length": 200, "max_dropped": 0.9}
                | sections.get("data", {}),
                "kto": sections.get("kto", {}),
            }
        )
        return prepare(recipe, tiny_tokenizer, refuse=refuse)

    return go


def labels(found: Any) -> list[bool]:
    return list(found.train["label"])


def row(label: Any, prompt: str = "ab?", completion: str = "cd") -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label}


@pytest.mark.parametrize(
    ("good", "bad"),
    [(True, False), (1, 0), (1.0, 0.0), (1, -1), ("good", "bad"), ("True", "False"), ("thumbs_up", "thumbs_down"), ("👍", "👎")],
)  # fmt: skip
def test_labels_of_every_spelling(prepared: Any, good: Any, bad: Any) -> None:
    assert labels(prepared([row(good), row(bad, "x?"), row(good, "y?")])) == [True, False, True]


@pytest.mark.parametrize("name", ["label", "thumbs_up", "feedback", "vote", "liked", "desirable"])
def test_a_label_by_other_names_beside_messages(prepared: Any, name: str) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    found = prepared([{"messages": turns, name: True}, {"messages": turns, name: False}])
    # a turn's own flag would leave it out of supervised training; here the label says what is learned
    assert labels(found) == [True, False]
    assert found.report.sources[0].format == "judged messages" and name in found.report.sources[0].reads


def test_the_prompt_ends_where_an_answer_is_asked_for(prepared: Any, tiny_tokenizer: Any) -> None:
    found = prepared([row(True), row(False)])
    prompt, completion = found.train[0]["prompt_ids"], found.train[0]["completion_ids"]
    asked = tiny_tokenizer.apply_chat_template([{"role": "user", "content": "ab?"}], add_generation_prompt=True)
    assert prompt == asked["input_ids"]
    assert tiny_tokenizer.decode(completion).replace(" ", "") == "cd<|im_end|>"


def test_pairs_are_a_good_and_a_bad_answer(prepared: Any) -> None:
    pairs = [{"prompt": f"{n}?", "chosen": "yes", "rejected": f"no {n}"} for n in range(5)]
    found = prepared([*pairs, {"prompt": "x", "chosen": "same", "rejected": "same"}])
    assert labels(found) == [True, False] * 5
    source = found.report.sources[0]
    assert (source.read, source.kept, source.dropped.count) == (6, 10, 1)
    assert found.train[2]["prompt_ids"] == found.train[3]["prompt_ids"]
    assert found.train[2]["origin"] == found.train[3]["origin"]
    counts = found.report.train.as_dict()
    assert (counts["rows"], counts["good_rows"], counts["bad_rows"], counts["prompts"]) == (10, 5, 5, 5)
    once = sum(len(found.train[row]["prompt_ids"]) for row in range(0, 10, 2))
    assert counts["saved_share"] == pytest.approx(once / counts["tokens"])


def test_a_mapping_names_the_label_and_its_values(prepared: Any) -> None:
    rows = [{"q": "a", "a": "b", "stars": stars} for stars in (5, 1, 5.0)]
    columns = {"prompt": "q", "completion": "a", "label": "stars"}
    assert labels(prepared(rows, {"columns": columns, "labels": {"5": True, "1": False}})) == [True, False, True]
    columns["label"] = "{{ 'good' if stars > 3 else 'bad' }}"
    assert labels(prepared(rows, {"columns": columns})) == [True, False, True]


@pytest.mark.parametrize(
    ("rows", "source", "said"),
    [
        ([row(5)], None, r"rows.jsonl:1: label: got 5; must be one of true or false.*labels: \{5: true, 1: false\}"),
        ([row(3)], {"labels": {"5": True, "1": False}}, r"label: got 3; must be one of 5, 1; name it under labels"),
        (
            [{"prompt": "a", "completion": "b"}],
            None,
            r"rows.jsonl:1: no columns that hold judged answers \(found prompt",
        ),
        ([row(True)], {"columns": {"prompt": "prompt", "completion": "completion"}}, "columns: must name label"),
        ([{"messages": [{"role": "user", "content": "a"}], "label": True}], None, "no assistant turn"),
    ],
)
def test_what_is_refused_says_where_and_why(prepared: Any, rows: Any, source: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        prepared(rows, source)
    assert len(str(refused.value).splitlines()) == 1


def test_rows_that_nobody_judged_are_counted(prepared: Any) -> None:
    found = prepared([row(True), row(None), row(False)])
    assert labels(found) == [True, False]
    assert "no label" in found.report.sources[0].dropped.by_reason


def test_supervised_training_wants_no_label(tmp_path: Path, tiny_tokenizer: Any) -> None:
    from hybrid_ft.finetune.recipe.schema import Recipe

    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "a", "a": "b", "ok": True}) + "\n")
    columns = {"prompt": "q", "completion": "a", "label": "ok"}
    source = {"path": str(tmp_path / "rows.jsonl"), "columns": columns}
    recipe = Recipe.model_validate({"model": {"path": "tiny"}, "data": {"sources": [source]}})
    with pytest.raises(InputError, match="label and labels are for judged answers; train on them with hybrid-ft kto"):
        prepare(recipe, tiny_tokenizer)


@pytest.mark.parametrize(
    ("limits", "kept", "reason"),
    [
        ({"data": {"on_long_row": "drop"}}, 1, "longer than data.max_length"),
        ({"data": {"on_long_row": "cut"}}, 3, None),
        ({"kto": {"on_long_prompt": "cut_start"}}, 3, "longer than data.max_length"),
        ({"kto": {"on_long_prompt": "cut_start"}, "data": {"on_long_row": "cut"}}, 4, None),
    ],
)
def test_long_rows(prepared: Any, limits: dict, kept: int, reason: str | None) -> None:
    """A short one; an answer of 150 tokens; 79 and 41 tokens; a prompt that leaves an answer no room."""
    rows = [row(True), row(False, completion="c" * 150), row(True, "a" * 60, "c" * 40), row(False, "a" * 150)]
    data = {"max_length": 100, "max_dropped": 1.0} | limits.get("data", {})
    found = prepared(rows, data=data, kto=limits.get("kto", {}))
    assert len(found.train) == kept
    assert all(len(one["prompt_ids"]) + len(one["completion_ids"]) <= 100 for one in found.train)
    assert all(one["completion_ids"] for one in found.train)
    assert reason is None or reason in found.report.sources[0].dropped.by_reason


@pytest.mark.parametrize(("key", "section"), [("on_long_row", "data"), ("on_long_prompt", "kto")])
def test_long_rows_may_end_the_run(prepared: Any, key: str, section: str) -> None:
    prompt = "a" * 150 if section == "kto" else "ab?"
    limits: dict[str, Any] = {"data": {"max_length": 100}} | ({"kto": {key: "error"}} if section == "kto" else {})
    limits["data"] |= {key: "error"} if section == "data" else {}
    with pytest.raises(InputError, match=rf"rows.jsonl:2: .*{section}.{key}: drop"):
        prepared([row(True), row(False, prompt, "c" * 120)], **limits)


@pytest.mark.parametrize(
    ("good", "bad", "weights", "note"),
    [
        (4, 4, {}, None),
        (4, 3, {}, None),
        (2, 4, {}, "weigh 0.50 times .*desirable_weight to 2.00 to 2.67, or kto.undesirable_weight to 0.38 to 0.50"),
        (2, 4, {"desirable_weight": 2.0}, None),
        (4, 2, {}, "weigh 2.00 times"),
        (4, 2, {"undesirable_weight": 0.0}, None),
        (4, 0, {}, "no answer is bad: the model can only learn to make all answers more likely"),
    ],
)
def test_the_balance_is_noted(prepared: Any, good: int, bad: int, weights: dict, note: str | None) -> None:
    import re

    rows = [row(number < good, f"{number}?") for number in range(good + bad)]
    report = prepared(rows, kto=weights).report
    notes = [line for line in report.warnings() if "weigh" in line or "no answer" in line]
    assert bool(notes) == (note is not None) and (note is None or re.search(note, notes[0]))
    assert f"train: {good + bad} rows, {good} good and {bad} bad" in " ".join(report.summary())


def test_a_row_judged_both_ways_is_noted(prepared: Any) -> None:
    report = prepared([row(True), row(False), row(True, "x?"), row(True, "x?")]).report
    assert report.train.reversed_too == 2 and report.train.duplicates == 1
    assert "rows of which the contrary, good beside bad, is there: 2" in report.warnings()


def test_the_account_is_drawn(prepared: Any) -> None:
    import io

    from rich.console import Console

    from hybrid_ft.finetune.data.report.view import draw

    screen = io.StringIO()
    draw(prepared([row(number == 0, f"{number}?") for number in range(6)]).report, Console(file=screen, width=100))
    assert "good 【c d <|im_end|>】" in screen.getvalue() and "bad 【c d <|im_end|>】" in screen.getvalue()


def test_shares_of_trained_tokens(prepared: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row(True, f"{n}?", "cd" * 4)) + "\n" for n in range(4)))
    sources = [{"path": str(tmp_path / "rows.jsonl"), "weight": 1}, {"path": str(other), "weight": 1}]
    rows = [row(n % 2 == 0, f"{n}!") for n in range(8)]
    found = prepared(rows, data={"sources": sources, "weight_by": "tokens"}).report.sources
    # 8 answers of 3 tokens, the one that ends the turn included; of 9 tokens two fit into as many
    assert [counts.taken for counts in found] == [8, 2]
    assert [counts.share for counts in found] == [24 / 42, 18 / 42]
    assert [counts.as_dict()["share_of_trained_tokens"] for counts in found] == [0.5714, 0.4286]
