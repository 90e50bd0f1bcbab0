"""Streams of preference pairs: the pairs, counts and held-out rows of the same files read whole, from any window on."""

import itertools
import json
import random
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data import prepare as whole
from hybrid_ft.finetune.data.preference_pairs import way_of_pairs
from hybrid_ft.finetune.data.streaming.prepared import prepare
from hybrid_ft.finetune.data.streaming.windows import RowStream
from hybrid_ft.finetune.data.streaming.written import write_stream
from hybrid_ft.finetune.data.tokens.encoder import Encoder
from hybrid_ft.finetune.recipe.schema import Recipe

WORDS = ["one", "two", "three", "four", "five", "six", "seven"]


@pytest.fixture
def made(write_rows: Any) -> Any:
    """``made(rows, **data)``: a reward model's recipe on these rows, streamed 40 pairs at a time in steps of 8."""

    def of(rows: list[dict[str, Any]], source: Any = None, **data: Any) -> Recipe:
        path = str(write_rows(rows, "rows.jsonl"))
        options = {"streaming": True, "shuffle_buffer": 43, "max_length": 64, "max_dropped": 0.5} | data
        return Recipe.model_validate(
            {
                "model": {"path": "tiny"},
                "data": {"sources": [{"path": path} | (source or {})], **options},
                "train": {"steps": 5, "batch_tokens": 256},
                "reward": {"pairs_per_step": 8},
            }
        )

    return of


def pairs(count: int) -> list[dict[str, Any]]:
    chance = random.Random(0)

    def text() -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(1, 6)))

    rows = [
        {"prompt": f"{n} {text()}", "chosen": text(), "rejected": f"{n} no", "margin": n % 3} for n in range(count - 2)
    ]
    return [*rows, {"prompt": "same", "chosen": "a", "rejected": "a"}, {"prompt": "q", "chosen": "a", "rejected": "b"}]


def lists(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{n} {WORDS[n % 7]}?", "responses": ["yes", "no", f"{n}"], "scores": [3, n % 2, 2]}
        for n in range(count)
    ]


def of_stream(recipe: Recipe, tokenizer: Any) -> RowStream:
    return RowStream(recipe, way_of_pairs(recipe, recipe.of_pairs, Encoder.of(recipe, tokenizer)), texts=False)


def steps_of(windows: Any) -> list[list[Any]]:
    return [[window.rows[row] for row in one] for window in windows for one in window.packs]


def as_set(rows: Any) -> set[Any]:
    return {(row["origin"], *(tuple(row[f"{side}_ids"]) for side in ("prompt", "chosen", "rejected"))) for row in rows}


@pytest.mark.parametrize(
    ("rows", "source"), [(pairs(90), {}), (lists(50), {}), (lists(50), {"pairs": "all"})], ids=["pairs", "best", "all"]
)
def test_a_pass_has_the_pairs_and_counts_of_the_files_read_whole(
    made: Any, tokenizer: Any, tmp_path: Any, rows: Any, source: Any
) -> None:
    recipe = made(rows, source, eval={"fraction": 0.1})
    prepared = prepare(recipe, tokenizer)
    written, account = write_stream(prepared, tmp_path / "o.parquet", None)
    wanted = whole.prepare(made(rows, source, streaming=False), tokenizer)
    import pyarrow.parquet as pq

    found = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert written == len(found) == len(wanted.train) and as_set(found) == as_set(wanted.train)
    assert {(row["origin"], row["margin"]) for row in found} == {(r["origin"], r["margin"]) for r in wanted.train}
    held = {tuple(row["prompt_ids"]) for row in found if row["split"] == "held_out"}
    assert held and held.isdisjoint({tuple(row["prompt_ids"]) for row in found if row["split"] == "train"})
    mine, theirs = account.sources[0].as_dict(), wanted.report.sources[0].as_dict()
    for counts in (mine, theirs):
        counts.pop("share_of_trained_tokens")
    assert mine == theirs
    assert account.train.unit == "pair" and account.train.rows + account.train.held == written


def test_steps_are_whole_and_the_same_from_any_window_on(made: Any, tokenizer: Any) -> None:
    recipe = made(pairs(90))
    windows = list(itertools.islice(of_stream(recipe, tokenizer).windows(), 6))
    assert [len(window.rows) for window in windows] == [40, 40, 9] * 2  # 43 are 5 steps of 8
    assert [len(step) for step in steps_of(windows)] == ([8] * 11 + [1]) * 2
    told = [[row.origin for row in step] for step in steps_of(windows)]
    first, second = (sorted(itertools.chain(*some)) for some in (told[:12], told[12:]))
    assert told[:12] != told[12:] and first == second
    for number in range(1, 6):
        again = of_stream(recipe, tokenizer)
        again.load(json.loads(json.dumps(windows[number].start)))
        rest = list(itertools.islice(again.windows(), 6 - number))
        assert [[row.origin for row in step] for step in steps_of(rest)] == [
            [row.origin for row in step] for step in steps_of(windows[number:])
        ]
        assert rest[-1].end == windows[-1].end


def test_all_pairs_of_a_list_follow_one_another(made: Any, tokenizer: Any) -> None:
    """But where a window's border is between them."""
    windows = list(itertools.islice(of_stream(made(lists(50), {"pairs": "all"}), tokenizer).windows(), 2))
    for window in windows:
        prompts = [window.rows[row].prompt for one in window.packs for row in one]
        assert len(list(itertools.groupby(prompts))) == len(set(prompts)) < len(prompts)


def test_single_judged_answers_are_refused(made: Any, tokenizer: Any) -> None:
    rows = [{"prompt": f"q{n // 2}", "completion": "a", "label": bool(n % 2)} for n in range(20)]
    with pytest.raises(InputError, match=r"rows\.jsonl: its rows are judged one by one; .* leave out data\.streaming"):
        prepare(made(rows), tokenizer)


def test_keys_for_other_rows_are_refused(made: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"format: messages is for supervised rows"):
        prepare(made(pairs(9), {"format": "messages"}), tokenizer)
    with pytest.raises(InputError, match=r"pairs: got all; the source holds no lists"):
        prepare(made(pairs(9), {"pairs": "all"}), tokenizer)
