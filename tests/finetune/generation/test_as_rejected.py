"""Delta pairs: chosen from the rows, rejected by the model; DPO reads them; a kill loses no window."""

import json
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft import cli
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.tokens.prompts import PromptEncoder
from hybrid_ft.finetune.generation import as_rejected, partial_answers
from hybrid_ft.finetune.generation.generate import answer, load_for_answers
from hybrid_ft.finetune.models import load_tokenizer
from hybrid_ft.finetune.recipe.load import load_recipe

ROWS = [{"prompt": f"say {number}", "completion": f"it is {number}"} for number in range(7)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steady_base: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("base").symlink_to(steady_base)
    return tmp_path


def generate(*more: str, rows: str = "rows.jsonl") -> int:
    arguments = ["--prompts", rows, "--out", "pairs.jsonl", "--as-rejected", "--max-new-tokens", "6", *more]
    return cli.main(["generate", "base", *arguments])


def pairs() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]


def test_dpo_reads_them_as_they_are(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rejected answers are the model's own to the same prompts; the pairs' tokens begin alike and say both."""
    model, tokenizer = load_for_answers("base")
    encoder = PromptEncoder(tokenizer)
    prompts = [encoder([{"role": "user", "content": row["prompt"]}]) for row in ROWS]
    wanted = answer(model, tokenizer, prompts, encoder.eos_token_ids, 6)
    # one row has what the model says anyway: nothing is to be preferred there
    same = {"prompt": ROWS[0]["prompt"], "completion": wanted[0]}
    calls = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": {}}}]}]}  # fmt: skip
    as_turns = [
        [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}] for r in ROWS
    ]
    rows = [{"messages": turns} for turns in as_turns] + [calls]
    if wanted[0].strip():
        rows.append({"messages": [as_turns[0][0], {"role": "assistant", "content": same["completion"]}]})
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert generate() == 0
    screen = capsys.readouterr().out
    assert "the last answer calls a function: 1 (rows.jsonl:8)" in screen
    made = pairs()
    said = [text for text in wanted if text.strip()]
    assert [pair["rejected"][0]["content"] for pair in made] == said and said
    assert [pair["chosen"][0]["content"] for pair in made] == [
        row["completion"] for row, text in zip(ROWS, wanted, strict=True) if text.strip()
    ]
    assert not Path("pairs.jsonl.part").exists()
    Path("dpo.yaml").write_text(
        "model: {path: base}\ndata: {sources: [{path: pairs.jsonl}], max_length: 64}\ntrain: {batch_tokens: 256}\ndpo: {}\n"
    )
    recipe = load_recipe("dpo.yaml")
    read = prepare(recipe, load_tokenizer(recipe))
    assert len(read.train) == len(made) and not read.report.sources[0].dropped.count
    assert read.report.sources[0].ignored == []
    for name in ("chosen", "rejected"):  # this tokenizer writes a space between letters
        texts = [tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") for ids in read.train[f"{name}_ids"]]
        assert texts == [pair[name][0]["content"].replace(" ", "") for pair in made]


def test_it_goes_on_where_it_was_killed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_answers, "WINDOW", 3)
    sampled = ["--temperature", "1.5", "--seed", "5"]
    assert generate(*sampled) == 0
    whole = Path("pairs.jsonl").read_bytes()
    Path("pairs.jsonl").unlink()
    ask, asked = as_rejected.answer, []

    def cut(model: Any, tokenizer: Any, prompts: list[Any], *rest: Any) -> list[str]:
        asked.append(len(prompts))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(model, tokenizer, prompts, *rest)

    monkeypatch.setattr(as_rejected, "answer", cut)
    generate(*sampled)
    part = Path("pairs.jsonl.part")
    assert part.read_text().count("\n") == 4 and not Path("pairs.jsonl").exists()
    part.write_text(part.read_text() + '"half of an ans')
    assert generate(*sampled) == 0
    assert asked == [3, 3, 3, 1] and Path("pairs.jsonl").read_bytes() == whole


def test_rows_of_a_recipe_and_what_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.jsonl").write_text(
        "".join(json.dumps({"q": row["prompt"], "a": row["completion"]}) + "\n" for row in ROWS)
    )
    Path("r.yaml").write_text(
        "model: {path: base}\ndata: {sources: [{path: own.jsonl, columns: {prompt: q, completion: a}, count: 5}]}\n"
    )
    assert generate("--count", "4", rows="r.yaml") == 0 and 1 <= len(pairs()) <= 4
    Path("dpo.yaml").write_text("model: {path: base}\ndata: {sources: [{path: pairs.jsonl}]}\ndpo: {}\n")
    capsys.readouterr()
    for arguments, rows, complaint in (
        ([], "nothing.jsonl", "error: nothing.jsonl: there is no such file of rows"),
        ([], "dpo.yaml", "error: dpo.yaml: is a recipe for dpo"),
        (["--out", "pairs.txt"], "rows.jsonl", "error: --out: got pairs.txt; --as-rejected needs"),
        (["--out", "rows.jsonl"], "rows.jsonl", "error: rows.jsonl: is the file of rows"),
    ):
        assert generate(*arguments, rows=rows) == 2
        assert capsys.readouterr().err.startswith(complaint)
    Path("pairs.jsonl.part").write_text('"another"\n')
    assert generate() == 2
    assert "holds answers to other rows, of another model or with" in capsys.readouterr().err
    assert cli.main(["generate", "base", "--prompts", "rows.jsonl", "--count", "3"]) == 2
