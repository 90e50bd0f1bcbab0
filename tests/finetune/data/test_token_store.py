"""Supervised rows and pairs go the same way: what is refused, dropped, counted and said does not differ."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.prepare import Prepared, prepare
from hybrid_ft.finetune.recipe.schema import Recipe

Rows = list[dict[str, Any]]


class Kind:
    """One kind of row, in the words that differ."""

    def __init__(self, name: str, folder: Path, tokenizer: Any) -> None:
        self.pairs, self._folder, self._tokenizer = name == "pairs", folder, tokenizer
        self.answer = "chosen" if self.pairs else "completion"

    def rows(self, count: int, start: int = 0) -> Rows:
        other = {"rejected": "no"} if self.pairs else {}
        return [{"prompt": f"question {n}", self.answer: f"answer {n}", **other} for n in range(start, start + count)]

    def write(self, rows: Rows, name: str = "rows.jsonl") -> Path:
        path = self._folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def prepare(self, *paths: Path, refuse: bool = True, train: dict[str, Any] | None = None, **data: Any) -> Prepared:
        sources = [{"path": str(path)} for path in paths]
        raw = {"model": {"path": "tiny"}, "data": {"sources": sources} | data, "train": train or {}}
        recipe = Recipe.model_validate(raw | ({"dpo": {}} if self.pairs else {}))
        return prepare(recipe, self._tokenizer, refuse=refuse)

    def refused(self, *paths: Path, **data: Any) -> str:
        with pytest.raises(InputError) as error:
            self.prepare(*paths, **data)
        assert error.value.status == 2 and "\n" not in str(error.value)
        return str(error.value)


@pytest.fixture(params=["supervised", "pairs"])
def kind(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: Any) -> Kind:
    return Kind(request.param, tmp_path, tokenizer)


@pytest.mark.parametrize("count", [2, 100, 600])
def test_a_bad_row_before_packed_data_ends(kind: Kind, count: int, tmp_path: Path) -> None:
    """The row comes first in the file, and in what is said."""
    noise = random.Random(0)
    rows = [row | {"noise": f"{noise.getrandbits(8000):x}"} for row in kind.rows(count)]
    rows[0][kind.answer] = None
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())[:-200])
    said = kind.refused(path)
    assert said.startswith(f"{path}:1: {kind.answer} is null; ")
    assert said.endswith(f"; 1 bad row of {count - 1}. Fix it, or set data.on_bad_row: skip")
    assert f":{count - 1}: the gz data after this line ends in the middle; the file was cut short" in kind.refused(
        path, on_bad_row="skip", max_dropped=1.0
    )


@pytest.mark.parametrize("bad", [0, 599])
def test_the_first_bad_row_is_named_and_all_are_counted(kind: Kind, bad: int) -> None:
    rows = kind.rows(600)
    for index in {bad, 300, 598}:
        rows[index][kind.answer] = None
    path = kind.write(rows)
    assert kind.refused(path).startswith(f"{path}:{min(bad, 300) + 1}: {kind.answer} is null; ")
    assert kind.refused(path).endswith("; 3 bad rows of 600. Fix it, or set data.on_bad_row: skip")
    prepared = kind.prepare(path, on_bad_row="skip", max_dropped=0.005)
    assert len(prepared.train) == 597 and prepared.report.sources[0].dropped.count == 3
    said = kind.refused(path, on_bad_row="skip", max_dropped=0.004)
    assert said.startswith("data.sources: dropped 3 of 600 rows (0.5 %): ") and "data.max_dropped allows 0.4 %" in said


def test_a_line_that_is_not_json(kind: Kind) -> None:
    path = kind.write(kind.rows(3))
    path.write_text(path.read_text() + "{\n")
    assert kind.refused(path).startswith(f"{path}:4: not JSON (")


def test_a_long_row_stops_the_run_where_the_recipe_says_so(kind: Kind) -> None:
    rows = kind.rows(4)
    rows[2][kind.answer] = "fox " * 400
    path = kind.write(rows)
    said = kind.refused(path, on_long_row="error", max_length=64)
    assert said.startswith(f"{path}:3: ") and " tokens; data.max_length is 64; 1 long row of 4. " in said
    assert said.endswith("Raise data.max_length, or set data.on_long_row: drop (or cut)")
    dropped = kind.prepare(path, max_length=64, max_dropped=1.0).report.sources[0]
    assert dropped.dropped.by_reason["longer than data.max_length"].first == [f"{path}:3"]
    cut = kind.prepare(path, max_length=64, on_long_row="cut")
    assert len(cut.train) == 4 and cut.report.sources[0].count("cut").first == [f"{path}:3"]
    assert any("of which an answer lost its end" in line for line in cut.report.warnings())


def test_the_account_is_there_before_the_refusal(kind: Kind) -> None:
    rows = kind.rows(9)
    rows[4][kind.answer] = None
    path = kind.write(rows)
    prepared = kind.prepare(path, refuse=False, on_bad_row="skip")
    assert prepared.report.refusal == kind.refused(path, on_bad_row="skip")


def test_held_out_rows_are_split_by_prompt_or_come_from_their_own_sources(kind: Kind) -> None:
    path = kind.write(kind.rows(30))
    split = kind.prepare(path, eval={"count": 5})
    assert split.eval is not None and (len(split.train), len(split.eval)) == (25, 5)
    assert not set(split.train["origin"]) & set(split.eval["origin"])
    other = kind.write(kind.rows(10, 25), "other.jsonl")
    own = kind.prepare(path, eval={"sources": [{"path": str(other)}]})
    assert own.eval is not None and len(own.eval) == 10 and own.report.shared_prompts == 5
    assert [source.name for source in own.report.eval_sources] == [str(other)]


def test_a_mix_by_weight_that_is_impossible_names_its_key(kind: Kind) -> None:
    path, other = kind.write(kind.rows(30)), kind.write(kind.rows(3), "other.jsonl")
    wanted = {"sources": [{"path": str(path)}, {"path": str(other), "count": 4}]}
    assert kind.refused(**wanted).startswith(f"data.sources: {other} has 3 usable rows, count asks for 4")
    held = {"sources": [{"path": str(other), "count": 4}]}
    assert kind.refused(path, eval=held).startswith(f"data.eval.sources: {other} has 3 usable rows")


def test_fields_and_columns_that_nothing_reads_are_named(kind: Kind) -> None:
    rows = [row | {"id": 1} for row in kind.rows(3)]
    for row in rows:
        row["prompt"] = [{"role": "user", "content": row["prompt"], "name": "ann", "score": 3}]
    path = kind.write(rows)
    assert kind.prepare(path).report.sources[0].ignored == ["id", "prompt[].score", "turns' name"]
