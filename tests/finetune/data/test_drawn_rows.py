"""A sample of a large source: what is read, that it is the sample of before, and that it is a fair one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybrid_ft.finetune.data import drawn_rows, encoding_workers, sources_in_tokens
from hybrid_ft.finetune.data.prepare import Prepared, prepare
from hybrid_ft.finetune.data.sources import arrow
from hybrid_ft.finetune.recipe.schema import Recipe

MakeRecipe = Callable[..., Recipe]
ROWS = [{"prompt": f"{n}", "completion": f"{n} a"} for n in range(3000)]
LONG = "x " * 3000


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The places of the rows that are made into tokens."""
    places: list[str] = []
    encode = encoding_workers.encoded_batch

    def watched(way: Any, schema: Any, rows: Any) -> Any:
        places.extend(place for place, _ in rows)
        return encode(way, schema, rows)

    monkeypatch.setattr(encoding_workers, "encoded_batch", watched)
    monkeypatch.setattr(encoding_workers, "cores", lambda: 1)
    monkeypatch.setattr(drawn_rows, "LARGE", 0)
    return places


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    else:
        with pa.ipc.new_stream(str(path), (table := pa.Table.from_pylist(rows)).schema) as writer:
            writer.write_table(table, max_chunksize=100)
    return path


def taken(prepared: Prepared) -> list[str]:
    return list(prepared.train["origin"])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.arrow"])
def test_it_is_the_sample_of_a_source_that_is_read_whole(
    name: str,
    recipe: MakeRecipe,
    tokenizer: Any,
    tmp_path: Path,
    encoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = recipe({"path": str(written(tmp_path / name, ROWS)), "count": 50})
    drawn = prepare(asked, tokenizer)
    assert len(encoded) == 50 == len(set(encoded))
    (source,) = drawn.report.sources
    assert (source.read, source.kept, source.taken, source.of) == (50, 50, 50, 3000)
    assert "50 rows of 3,000, drawn as count says" in source.line()
    monkeypatch.setattr(drawn_rows, "LARGE", 2**40)
    assert taken(prepare(asked, tokenizer)) == taken(drawn)
    assert len(encoded) == 3050
    monkeypatch.setattr(drawn_rows, "LARGE", 0)
    assert taken(prepare(recipe(asked.data.sources[0].model_dump(), seed=1), tokenizer)) != taken(drawn)


def test_a_slice_is_drawn_from(recipe: MakeRecipe, tokenizer: Any, tmp_path: Path, encoded: list[str]) -> None:
    """Rows of two files, beginning within the first: the ones of before, with their own places."""
    files = [written(tmp_path / f"{n}.parquet", ROWS[1000 * n : 1000 * (n + 1)]) for n in range(3)]
    source = {"path": str(tmp_path / "*.parquet"), "split": "train[10%:50%]+train[-100:]", "count": 40}
    drawn = taken(prepare(recipe(source), tokenizer))
    assert encoded == drawn and len(drawn) == 40
    whole = taken(prepare(recipe(source | {"count": None}), tokenizer))
    assert len(whole) == 1300 and set(drawn) < set(whole)
    assert whole[0] == f"{files[0]}:301" and whole[1200] == f"{files[2]}:901" and whole[-1] == f"{files[2]}:1000"
    rows = np.sort(np.random.default_rng((0, 0)).choice(1300, 40, replace=False))
    assert drawn == [whole[row] for row in rows]


def test_row_groups_of_which_nothing_is_wanted_are_not_decoded(
    tmp_path: Path, recipe: MakeRecipe, tokenizer: Any, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    taking = arrow._taken

    def watched(before: int, batch: Any, *more: Any) -> Any:
        read.append(before)
        return taking(before, batch, *more)

    monkeypatch.setattr(arrow, "_taken", watched)
    path = written(tmp_path / "rows.parquet", ROWS)
    prepare(recipe({"path": str(path), "count": 3}), tokenizer)
    # the first rows, asked for their form, are none of them: an SFT row's form is told from the drawn ones
    assert len(read) <= 3
    read.clear()
    prepare(recipe({"path": str(path), "split": "train[90%:]"}), tokenizer)
    assert min(read) == 2700


def test_more_are_drawn_where_rows_drop_out(
    recipe: MakeRecipe, tokenizer: Any, tmp_path: Path, encoded: list[str]
) -> None:
    rows = [row | ({"completion": LONG} if n % 3 else {}) for n, row in enumerate(ROWS)]
    asked = recipe({"path": str(written(tmp_path / "rows.parquet", rows)), "count": 100}, max_dropped=1.0)
    first = prepare(asked, tokenizer)
    places = taken(first)
    assert len(places) == 100 == len(set(places))
    assert all((int(place.rpartition(":")[2]) - 1) % 3 == 0 for place in places)
    assert len(encoded) == len(set(encoded)) < 600  # no row twice
    assert first.report.sources[0].dropped.count == len(encoded) - first.report.sources[0].kept
    assert taken(prepare(asked, tokenizer)) == places


@pytest.mark.parametrize("draws", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_every_usable_row_is_as_likely(
    recipe: MakeRecipe, tokenizer: Any, tmp_path: Path, encoded: list[str], draws: int
) -> None:
    """Of 60 rows of which 40 are usable, 10 are drawn: each about 75 times in 300 (sd 7.5), and no more standard
    deviations off in 60."""
    rows = [row | ({"completion": LONG} if n % 3 == 2 else {}) for n, row in enumerate(ROWS[:60])]
    path = str(written(tmp_path / "rows.parquet", rows))
    times = np.zeros(61)
    for seed in range(draws):
        drawn = taken(prepare(recipe({"path": path, "count": 10}, seed=seed, max_dropped=1.0), tokenizer))
        times[[int(place.rpartition(":")[2]) for place in drawn]] += 1
    usable = times[1:].reshape(20, 3)[:, :2].ravel()
    mean, scale = draws / 4, (draws / 300) ** 0.5
    assert times.sum() == 10 * draws == usable.sum()
    assert max(abs(usable - mean)) < 35 * scale
    # by their place: no half of the file and neither of two neighbours is preferred
    assert all(abs(half.sum() - 20 * mean) < 120 * scale for half in (usable[:20], usable[::2]))


def test_what_cannot_be_drawn_first_is_read_whole(
    recipe: MakeRecipe, tokenizer: Any, tmp_path: Path, encoded: list[str]
) -> None:
    """Filters choose by value, texts become pieces, and a sample of most rows saves nothing."""
    path = str(written(tmp_path / "rows.jsonl", ROWS))
    for source, data in [
        ({"without": {"prompt": "none"}, "count": 10}, {}),
        ({"count": 10}, {"on_long_row": "split"}),
        ({"count": 1600}, {}),
    ]:
        encoded.clear()
        assert prepare(recipe({"path": path} | source, **data), tokenizer).report.sources[0].of == 0
        assert len(encoded) == 3000


def test_other_samples_are_kept_beside(
    recipe: MakeRecipe, tokenizer: Any, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_in_tokens, "WORTH_KEEPING", 0)
    path, cache = str(written(tmp_path / "rows.parquet", ROWS)), str(tmp_path / "kept")
    for count, new in [(20, 20), (30, 30), (20, 0)]:
        encoded.clear()
        made = prepare(recipe({"path": path, "count": count}, cache=cache), tokenizer)
        assert (len(made.train), len(encoded), made.report.sources[0].of) == (count, new, 3000)
