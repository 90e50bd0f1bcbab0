"""The order of a stream: every row once a pass, by the seed alone, the same from any window on."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from hybrid_ft.errors import InputError

TRAIN = {"steps": 5, "batch_tokens": 128, "batch_size": 4}


@pytest.fixture
def of(recipe):
    """``of(source, ..., **data)``: a recipe that streams, 64 rows at a time unless told."""

    def made(*sources, **data):
        return recipe(*sources, train=TRAIN, **({"streaming": True, "shuffle_buffer": 64, "max_length": 128} | data))

    return made


def taken(stream, windows):
    return list(itertools.islice(stream.windows(), windows))


def order(windows):
    """Origins, pack by pack."""
    return [[window.rows[row].origin for row in one] for window in windows for one in window.packs]


def origins(windows):
    return [origin for one in order(windows) for origin in one]


def test_every_row_once_a_pass_and_packs_within_their_budget(of, stream, questions):
    file = questions("a.jsonl", 300)
    windows = taken(stream(of(file)), 10)
    assert [len(window.rows) for window in windows] == [64, 64, 64, 64, 44] * 2
    first, second = origins(windows[:5]), origins(windows[5:])
    assert sorted(first) == sorted(second) == sorted(f"{file}:{line}" for line in range(1, 301))
    assert first != second and first != sorted(first)
    for window in windows:
        sizes = [sum(len(window.rows[row].ids) for row in one) for one in window.packs]
        assert max(sizes) <= 128 and np.mean(sizes) > 100
    assert windows[4].end["passes"] == 0 and windows[9].end["passes"] == 1
    # counted once, however often they are read
    assert windows[9].end["counts"][0]["read"] == 300 and windows[9].end["rows"] == 600


def test_the_seed_decides_the_order(of, stream, questions):
    file = questions("a.jsonl", 100)
    one, same, other = (order(taken(stream(of(file, seed=seed)), 2)) for seed in (0, 0, 1))
    assert one == same != other


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"packing": False},
        pytest.param({"eval": {"fraction": 0.3}}, marks=pytest.mark.slow),
        {"shuffle_buffer": 100},
    ],
)
def test_goes_on_from_any_window(of, stream, questions, data):
    """From JSON, in another process as it were: rows, packs and counts, over the end of a pass."""
    files = [{"path": str(questions("a.jsonl", 150))}, {"path": str(questions("b.jsonl", 70)), "repeat": 2}]
    recipe = of(*files, **data)
    whole = taken(stream(recipe), 8)
    for number in range(8):
        fresh = stream(recipe)
        fresh.load(json.loads(json.dumps(whole[number].start)))
        rest = taken(fresh, 8 - number)
        assert order(rest) == order(whole[number:])
        assert [window.end for window in rest] == [window.end for window in whole[number:]]
        assert [window.start for window in rest] == [window.start for window in whole[number:]]


def test_a_pass_takes_each_source_as_often_as_repeat_says(of, stream, questions):
    files = [{"path": str(questions("a.jsonl", 90))}, {"path": str(questions("b.jsonl", 40)), "repeat": 3}]
    windows = taken(stream(of(*files)), 4)
    assert sum(len(window.rows) for window in windows) == 90 + 3 * 40
    counted = Counter(origins(windows))
    assert {count for origin, count in counted.items() if "a.jsonl" in origin} == {1}
    assert {count for origin, count in counted.items() if "b.jsonl" in origin} == {3}
    # by their size on disk both are mixed to the end
    last = Counter(origin.rpartition("/")[2].partition(":")[0] for origin in origins(windows[2:3]))
    assert min(last["a.jsonl"], last["b.jsonl"]) >= 10


def test_weights_are_the_mix_and_a_source_begins_again(of, stream, questions):
    files = [
        {"path": str(questions("a.jsonl", 500)), "weight": 0.25},
        {"path": str(questions("b.jsonl", 40)), "weight": 0.75},
    ]
    rows = origins(taken(stream(of(*files)), 12))
    assert len(rows) == 12 * 64
    of_a = [origin for origin in rows if "a.jsonl" in origin]
    assert len(of_a) / len(rows) == pytest.approx(0.25, abs=0.05) and len(set(of_a)) == len(of_a)
    # no row of b comes a third time before each came twice
    counts = Counter(origin for origin in rows if "b.jsonl" in origin)
    assert len(counts) == 40 and max(counts.values()) - min(counts.values()) <= 1


def test_padded_batches_are_of_one_size(of, stream, questions):
    windows = taken(stream(of(questions("a.jsonl", 150), packing=False, shuffle_buffer=50)), 4)
    assert [len(one) for window in windows for one in window.packs] == ([4] * 12) * 3 + [4, 2]


def test_the_counts_are_those_of_a_whole_reading(of, stream, write_rows, tokenizer, recipe):
    """Dropped rows, notes, unused columns, after any number of stops."""
    from hybrid_ft.finetune.data.prepare import prepare
    from hybrid_ft.finetune.data.streaming.source_stream import counts_of

    rows = [
        {"prompt": f"q {n}", "completion": "word " * (60 if n % 50 == 7 else 3), f"c{n % 3}": 1} for n in range(600)
    ]
    rows[300] = {"prompt": "q", "completion": "<|im_end|> said"}
    file = write_rows(rows)
    text = file.read_text().splitlines()
    text[400] = "{broken"
    file.write_text("\n".join(text) + "\n")
    keys = {"max_length": 64, "on_bad_row": "skip", "max_dropped": 0.5}
    whole = prepare(recipe(str(file), train=TRAIN, **keys), tokenizer).report.sources[0]
    assert whole.dropped.count == 13 and whole.control_tokens_as_text.count == 1 and whole.ignored == ["c0", "c1", "c2"]
    first = stream(of(file, **keys))
    starts = [window.start for window in taken(first, 10)]
    for start in starts:  # each window by a start of its own
        another = stream(of(file, **keys))
        another.load(json.loads(json.dumps(start)))
        end = taken(another, 1)[0].end
    assert end["rows"] == 587 and end["passes"] == 0
    assert counts_of(end["counts"][0]).as_dict() == whole.as_dict()


def test_a_bad_row_stops_the_stream_where_it_comes(of, stream, questions):
    file = questions("a.jsonl", 900)
    with file.open("a") as out:
        out.write("{broken\n")
    windows = stream(of(file)).windows()
    seen = 0
    with pytest.raises(InputError, match=r"a\.jsonl:901: .*1 bad row of 901\. Fix it, or set data\.on_bad_row: skip"):
        for _ in windows:
            seen += 1
    assert seen >= 10


def test_more_dropped_rows_than_allowed_stop_it(of, stream, write_rows):
    rows = [{"prompt": "q", "completion": "word " * (300 if n > 1500 else 3)} for n in range(3000)]
    windows = stream(of(write_rows(rows), max_dropped=0.1)).windows()
    with pytest.raises(InputError, match=r"data\.max_dropped allows 10\.0 %.*rows of the stream that were read so far"):
        list(windows)


@pytest.mark.parametrize("eval_", [{"fraction": 0.999999}])
def test_nothing_left_to_train_on(of, stream, questions, eval_):
    with pytest.raises(InputError, match=r"no row is left to train on"):
        taken(stream(of(questions("a.jsonl", 20), eval=eval_)), 1)
