"""The rows written as parquet are those of the run, and nothing stands in the file's place before all are."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from hybrid_ft import cli
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data import trained_rows
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.trained_rows import check_out, write_rows
from hybrid_ft.finetune.recipe.schema import Recipe


def recipe_of(path: Path, rows: list[dict[str, Any]], **sections: Any) -> Recipe:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"sources": [{"path": str(path)}], "max_length": 200} | sections.pop("data", {})
    return Recipe.model_validate({"model": {"path": "tiny"}, "data": data} | sections)


ROWS = [{"prompt": f"q{n}?", "completion": f"a{n}", **({"weight": 0.25} if n % 3 == 1 else {})} for n in range(150)]
PAIRS = [{"prompt": f"q{n}?", "chosen": f"a{n}", "rejected": "b"} for n in range(20)]
JUDGED = [{"prompt": f"q{n}?", "completion": "a", "label": n % 2 == 0} for n in range(20)]


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto"])
def test_what_is_written_is_what_is_trained_on(
    kind: str, tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_rows, "_GROUP", 1)  # a row group for each batch
    rows = {"sft": ROWS, "dpo": PAIRS, "kto": JUDGED}[kind]
    stage = {} if kind == "sft" else {kind: {}}
    prepared = prepare(recipe_of(tmp_path / "rows.jsonl", rows, data={"eval": {"count": 5}}, **stage), tiny_tokenizer)
    out = tmp_path / "out.parquet"
    assert write_rows(prepared, out) == len(rows)
    assert prepared.eval is not None
    found = pq.read_table(out).to_pylist()
    assert [row.pop("split") for row in found] == ["train"] * (len(rows) - 5) + ["held_out"] * 5
    for row, stored in zip(found, [*prepared.train, *prepared.eval], strict=True):
        weights = row.pop("weights", None)
        assert row == {name: stored[name] for name in row} and row["origin"]
        if kind == "sft":
            own = stored["weights"] or [1.0] * len(stored["labels"])
            assert weights == [0.0 if label == -100 else one for label, one in zip(stored["labels"], own, strict=True)]
            line = int(row["origin"].rpartition(":")[2])
            assert {one for one in weights if one} == {0.25 if (line - 1) % 3 == 1 else 1.0}
    assert pq.ParquetFile(out).num_row_groups == (4 if kind == "sft" else 2)
    read = datasets.Dataset.from_parquet(str(out), cache_dir=str(tmp_path / "cache"))
    assert len(read) == len(rows) and set(read.column_names) == {"split", *prepared.train.column_names}


def test_the_command_writes_all_or_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "q", "completion": "a"}\n' * 2)
    Path("r.yaml").write_text("model: {path: tiny}\ndata: {sources: [{path: rows.jsonl}]}\n")
    assert cli.main(["data", "r.yaml", "--out", "out.parquet"]) == 0
    assert "out.parquet: 2 rows written" in capsys.readouterr().out
    before = Path("out.parquet").read_bytes()
    Path("rows.jsonl").write_text('{"prompt": "q", "completion": null}\n')
    assert cli.main(["data", "r.yaml", "--out", "out.parquet"]) == 2
    assert cli.main(["data", "r.yaml", "--out", "out.parquet", "data.on_bad_row=skip"]) == 2
    assert cli.main(["data", "r.yaml", "--out", "out.parquet", "--row", "rows.jsonl:1"]) == 2
    capsys.readouterr()
    assert cli.main(["data", "r.yaml", "--row", "rows.jsonl:1"]) == 0
    assert "dropped: completion is null; give its text; it stops the run" in capsys.readouterr().out
    assert Path("out.parquet").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "r.yaml", "out.parquet"}


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("out.json", "must be a name in .parquet"),
        ("none/out.parquet", "its folder does not exist"),
        ("folder.parquet", "is a folder"),
        ("data/more.parquet", "the recipe reads data; write to another place"),
        ("data/rows.parquet", "write to another place"),
        ("shards/new.parquet", "the recipe reads shards/*.parquet"),
        ("fine.parquet", ""),
        ("shards/deeper/fine.parquet", ""),
    ],
)
def test_a_file_that_cannot_be_written_or_that_is_read(
    out: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "shards/deeper", "folder.parquet"):
        Path(name).mkdir(parents=True)
    sources = [{"path": "data"}, {"path": "shards/*.parquet"}, {"path": "data/rows.parquet"}, {"path": "owner/set"}]
    recipe = Recipe.model_validate({"model": {"path": "tiny"}, "data": {"sources": sources}})
    if not says:
        return check_out(Path(out), recipe)
    with pytest.raises(InputError, match=rf"^--out: {out}: .*") as error:
        check_out(Path(out), recipe)
    assert says in str(error.value)
    return None
