"""``data.decontaminate``: rows that hold what an evaluation asks are dropped, counted, named, and part of the key."""

import json
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.grams import Questions
from hybrid_ft.finetune.data.one_row import find_row
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.streaming.prepared import StreamPrepared
from hybrid_ft.finetune.data.streaming.prepared import prepare as prepare_any
from hybrid_ft.finetune.models import load_tokenizer
from hybrid_ft.finetune.recipe.load import load_recipe

QUESTION = "Ann has three red apples and gives two of them to her brother Ben how many are left"
OTHER = "A train leaves the station at nine and arrives at noon in the next town on the coast today"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [
        (f"Please: {QUESTION}?", "One."),
        ("Is it cold?", "Yes."),
        ("Tell a story.", f"Of course. {QUESTION.upper()} he asked."),
        (OTHER[:45], "No."),
        *((f"What is {n} and {n}?", str(2 * n)) for n in range(10)),
    ]
    lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in rows]
    Path("rows.jsonl").write_text("\n".join(lines) + "\n")
    tests = [{"q": QUESTION, "a": "1"}, {"q": OTHER, "a": "3"}]
    Path("tests").mkdir()
    Path("tests/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tests))
    Path("tests/mine.yaml").write_text(
        "rows: {path: test.jsonl, columns: {prompt: q, completion: a}}\nevaluator: exact\n"
    )
    Path("plain.jsonl").write_text(json.dumps({"prompt": OTHER[:40], "completion": "x"}) + "\n")
    return tmp_path


def prepared(*changes: str, more: str = "") -> Any:
    Path("r.yaml").write_text(
        f"model: {{path: tiny}}\ndata: {{sources: [{{path: rows.jsonl}}], cache: tokens, {more}}}\n"
    )
    recipe = load_recipe("r.yaml", changes)
    return recipe, prepare(recipe, load_tokenizer(recipe))


def kept(made: Any) -> list[int]:
    return [int(origin.rpartition(":")[2]) for origin in made.train["origin"]]


def test_rows_that_hold_a_question_are_dropped(place: Path) -> None:
    """In the prompt or in the answer, whatever the case; more of them than max_dropped allows do not end the run."""
    recipe, made = prepared(more="decontaminate: [tests/mine.yaml]")
    assert kept(made) == [2, 4, *range(5, 15)]
    dropped = made.report.sources[0].dropped.by_reason["asked in an evaluation"]
    assert dropped.count == 2 and dropped.first == ["rows.jsonl:1", "rows.jsonl:3"]
    [row] = find_row(recipe, load_tokenizer(recipe), "rows.jsonl:1")
    assert "holds half of the runs of eight words of tests/test.jsonl:1" in str(row)
    # one without the other would find the tokens of the other
    assert len(prepared()[1].train) == 14 and len(prepared(more="decontaminate: [tests/mine.yaml]")[1].train) == 12
    Path("tests/test.jsonl").write_text(json.dumps({"q": OTHER, "a": "3"}) + "\n")
    assert len(prepared(more="decontaminate: [tests/mine.yaml]")[1].train) == 14


def test_a_file_of_rows_and_held_out_files(place: Path) -> None:
    """Held-out rows are an evaluation themselves, and stay."""
    _, made = prepared(more="decontaminate: [plain.jsonl], eval: {sources: [{path: plain.jsonl}]}")
    assert kept(made) == [1, 2, 3, *range(5, 15)] and len(made.eval) == 1


def test_pairs_are_looked_through_too(place: Path) -> None:
    pairs = [{"prompt": "Which?", "chosen": "This.", "rejected": text} for text in ("That.", QUESTION, "None.")]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    recipe = load_recipe_of_pairs()
    made = prepare(recipe, load_tokenizer(recipe))
    assert made.train["origin"] == ["rows.jsonl:1", "rows.jsonl:3"]


def test_a_stream_is_looked_through_as_it_comes(place: Path) -> None:
    more = "decontaminate: [tests/mine.yaml], streaming: true, eval: {sources: [{path: rows.jsonl}]}"
    Path("s.yaml").write_text(
        f"model: {{path: tiny}}\ndata: {{sources: [{{path: rows.jsonl}}], {more}}}\ntrain: {{steps: 2}}\n"
    )
    recipe = load_recipe("s.yaml")
    made = prepare_any(recipe, load_tokenizer(recipe))
    assert isinstance(made, StreamPrepared)
    stream = made.open()
    window = next(stream.windows())
    assert sorted(int(row.origin.rpartition(":")[2]) for row in window.rows) == [2, 4, *range(5, 15)]
    assert stream.sources[0].counts.dropped.by_reason["asked in an evaluation"].first == [
        "rows.jsonl:1",
        "rows.jsonl:3",
    ]
    assert made.eval is not None and len(made.eval) == 14


def load_recipe_of_pairs() -> Any:
    Path("d.yaml").write_text(
        "model: {path: tiny}\ndata: {sources: [{path: rows.jsonl}], decontaminate: [tests/mine.yaml]}\ndpo: {}\n"
    )
    return load_recipe("d.yaml")


def test_half_of_the_runs_by_hand() -> None:
    """11 words are 4 runs of 8: a text with 2 of them holds the question, one with 1 does not;
    formulas are no words."""
    words = ["aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh", "ii", "jj", "kk"]
    questions = Questions([" ".join(words), "1 2 3 4 5 6 7 8 9", "tell me now", ""])
    assert questions.met_in("so " + " ".join(words[:9]) + " no") == [0]
    assert questions.met_in(" ".join(words[:8])) == []
    assert questions.met_in("1 2 3 4 5 6 7 8 9") == []
    assert questions.met_in("please Tell, me: NOW!") == [2]


def test_what_cannot_be_read_is_said(place: Path) -> None:
    for names, complaint in (
        ("[gsm9k.yaml]", r"r.yaml:2: data.decontaminate.0: got 'gsm9k.yaml'; there is no such data file"),
        ("[tests/bad.yaml]", r"data.decontaminate: tests/bad.yaml: must be a task with rows:"),
    ):
        Path("tests/bad.yaml").write_text("made: {kind: needle}\nevaluator: contains\n")
        with pytest.raises(InputError, match=complaint):
            prepared(more=f"decontaminate: {names}")


def test_rows_that_ask_nothing_are_no_protection(place: Path) -> None:
    """Where none can be read, every row would stay in without a word."""
    Path("tests/blind.yaml").write_text(
        'rows: {path: test.jsonl, columns: {prompt: "{{ q.nope }}", completion: a}}\nevaluator: exact\n'
    )
    with pytest.raises(InputError, match=r"tests/blind.yaml: no row of it asks anything \(tests/test.jsonl:1: .*nope"):
        prepared(more="decontaminate: [tests/blind.yaml]")


def test_columns_of_a_file_stand_in_a_task(place: Path) -> None:
    """A name alone has no place for them; what the message says is done as it says."""
    with pytest.raises(InputError, match="columns in no known format") as raised:
        prepared(more="decontaminate: [tests/test.jsonl]")
    assert str(raised.value).endswith("name a YAML file with rows: {path: tests/test.jsonl, columns: ...} instead")
    Path("asked.yaml").write_text("rows: {path: tests/test.jsonl, columns: {prompt: q, completion: a}}\n")
    assert kept(prepared(more="decontaminate: [asked.yaml]")[1]) == [2, 4, *range(5, 15)]
