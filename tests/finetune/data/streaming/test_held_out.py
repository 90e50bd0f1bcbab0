"""A held-out row is one by what it asks: in any order of files and rows, on one side, a bounded number kept."""

import itertools
import random

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.streaming.held_out import held_out_rows
from hybrid_ft.finetune.data.supervised import way_of_rows
from hybrid_ft.finetune.data.tokens.encoder import Encoder

TRAIN = {"steps": 5, "batch_tokens": 128}


@pytest.fixture
def held(tokenizer):
    def of(recipe):
        return held_out_rows(recipe, way_of_rows(recipe.data, Encoder.of(recipe, tokenizer)), texts=True)

    return of


def asked(rows, tokenizer):
    return [tokenizer.decode(ids) for ids in rows["prompt_ids"]]


def test_the_same_rows_in_any_order_and_none_is_trained(held, stream, recipe, write_rows, tokenizer):
    rows = [{"prompt": f"question {n // 2}", "completion": f"answer {n}"} for n in range(400)]  # each asked twice
    orders = []
    for seed in (0, 1):
        mixed = list(rows)
        random.Random(seed).shuffle(mixed)
        files = [write_rows(mixed[:150], f"{seed}-a.jsonl"), write_rows(mixed[150:], f"{seed}-b.jsonl")]
        made = recipe(
            *(files if seed else reversed(files)), train=TRAIN, streaming=True, max_length=128, eval={"fraction": 0.2}
        )
        kept = asked(held(made), tokenizer)
        assert len(kept) == pytest.approx(80, abs=30) and len(kept) == 2 * len(set(kept))
        orders.append(sorted(kept))
        trained = {
            tokenizer.decode(row.ids) for window in itertools.islice(stream(made).windows(), 1) for row in window.rows
        }
        assert len(trained) == 400 - len(kept)
        assert not [text for text in trained if any(text.startswith(question) for question in kept)]
        few = recipe(*files, train=TRAIN, streaming=True, max_length=128, eval={"fraction": 0.2, "count": 7})
        assert len(held(few)) == 7 and set(asked(held(few), tokenizer)) <= set(kept)
        orders.append(asked(held(few), tokenizer))
    assert orders[0] == orders[2] and sorted(orders[1]) == sorted(orders[3])


def test_the_seed_decides_which(held, recipe, questions, tokenizer):
    file = questions("a.jsonl", 200)
    one, other = (
        set(
            asked(
                held(recipe(file, train=TRAIN, streaming=True, max_length=128, seed=seed, eval={"fraction": 0.3})),
                tokenizer,
            )
        )
        for seed in (0, 1)
    )
    assert one != other and one & other


def test_none_found(held, recipe, questions):
    made = recipe(questions("a.jsonl", 20), train=TRAIN, streaming=True, max_length=128, eval={"fraction": 1e-6})
    with pytest.raises(InputError, match=r"data\.eval\.fraction: got 1e-06; no row .* first 20 of the stream"):
        held(made)
