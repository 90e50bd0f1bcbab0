"""A stream in a file: the rows of its first pass in the order of training, as a recipe that is
not streamed has them."""

import pyarrow.parquet as pq
import pytest

from hybrid_ft import cli
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data import prepare as whole
from hybrid_ft.finetune.data.streaming.prepared import prepare
from hybrid_ft.finetune.data.streaming.written import check_rows, write_stream
from hybrid_ft.finetune.data.trained_rows import write_rows

TRAIN = {"steps": 5, "batch_tokens": 128, "batch_size": 4}


@pytest.fixture
def streamed(recipe, questions, tokenizer):
    """``streamed(**data)``: two files of 150 and 30 rows as a stream."""

    def made(first=None, **data):
        files = [
            {"path": str(questions(name, rows)), **(first or {})} for name, rows in (("a.jsonl", 150), ("b.jsonl", 30))
        ]
        options = {"streaming": True, "shuffle_buffer": 64, "max_length": 128} | data
        return recipe(*files, train=TRAIN, **options)

    return made


def in_file(made, tokenizer, path, rows=None):
    prepared = prepare(made, tokenizer)
    written, account = write_stream(prepared, path, rows)
    return written, account, pq.read_table(path), prepared


def test_one_pass_is_what_is_read_without_streaming(streamed, tokenizer, tmp_path):
    written, account, found, prepared = in_file(
        streamed(eval={"fraction": 0.1}), tokenizer, tmp_path / "stream.parquet"
    )
    write_rows(whole.prepare(streamed(streaming=False), tokenizer), tmp_path / "whole.parquet")
    wanted = pq.read_table(tmp_path / "whole.parquet")
    assert found.schema == wanted.schema and written == len(found) == 180
    both = [{row.pop("origin"): (row.pop("split"), row)[1] for row in one.to_pylist()} for one in (found, wanted)]
    assert both[0] == both[1] and len(both[0]) == 180
    splits = found["split"].to_pylist()
    held = splits.count("held_out")
    assert splits == ["train"] * (180 - held) + ["held_out"] * held and 5 < held < 40
    assert account.train.rows == 180 - held and account.train.held == held and account.sources[0].read == 150
    trained = [label != -100 for labels in found["labels"].to_pylist()[: 180 - held] for label in labels]
    assert account.train.trained == sum(trained)
    window = next(prepared.open().windows())
    assert found["origin"].to_pylist()[:20] == [window.rows[row].origin for one in window.packs for row in one][:20]


def test_the_first_rows_alone(streamed, tokenizer, tmp_path):
    ((all_of, *_), (few, _, found, _)) = (
        in_file(streamed(), tokenizer, tmp_path / f"{rows}.parquet", rows) for rows in (None, 70)
    )
    assert (all_of, few) == (180, 70)
    assert found.equals(pq.read_table(tmp_path / "None.parquet").slice(0, 70).combine_chunks())
    more, *_ = in_file(streamed({"weight": 1.0}), tokenizer, tmp_path / "weighed.parquet", 500)
    assert more == 500


def test_a_stream_without_an_end_needs_a_number_of_rows(streamed, tokenizer):
    with pytest.raises(InputError, match=r"^--out: a stream whose sources have weights never ends; .* --rows N$"):
        check_rows(None, prepare(streamed({"weight": 1.0}), tokenizer))


def test_by_the_command(questions, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = questions("a.jsonl", 30)
    (tmp_path / "r.yaml").write_text(
        f"model: {{path: tiny}}\ndata: {{sources: [{{path: {file}}}], streaming: true}}\ntrain: {{steps: 5}}\n"
    )
    assert cli.main(["data", "r.yaml", "--out", "o.parquet", "--rows", "9"]) == 0
    assert "o.parquet: 9 rows written" in capsys.readouterr().out and pq.read_metadata("o.parquet").num_rows == 9
    assert cli.main(["data", "r.yaml", "--rows", "9"]) == 2
    assert cli.main(["data", "r.yaml", "--out", "n.parquet", "--rows", "9", "data.streaming=false"]) == 2
    assert capsys.readouterr().err.count("--rows: is for --out and data.streaming: true") == 2
    file.write_text(file.read_text() + '{"prompt": "q", "completion": null}\n')
    assert cli.main(["data", "r.yaml", "--out", "n.parquet"]) == 2
    assert {path.name for path in tmp_path.glob("*.parquet")} == {"o.parquet"}
