"""Counts of the public preference files, with the real tokenizer."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.finetune.data.prepare import Prepared, prepare

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(
        not ("HYBRID_FT_REAL_DATA" in os.environ and "HYBRID_FT_REAL_TOKENIZER" in os.environ),
        reason="HYBRID_FT_REAL_DATA and HYBRID_FT_REAL_TOKENIZER are not set",
    ),
]


@pytest.fixture(scope="module")
def real_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(os.environ["HYBRID_FT_REAL_TOKENIZER"])


def prepared(name: str, pair_recipe: Any, tokenizer: Any, **sections: Any) -> Prepared:
    path = Path(os.environ["HYBRID_FT_REAL_DATA"], "preference", name)
    # from scratch: the tiny base has fewer tokens
    limits = {
        "model": {"from_scratch": True},
        "data": {"max_length": 4096, "max_dropped": 0.01},
        "train": {"batch_tokens": 8192},
    }
    return prepare(pair_recipe(str(path), **limits | sections), tokenizer)


def counts(result: Prepared) -> tuple[int, int, dict[str, int]]:
    source = result.report.as_dict()["sources"][0]
    return source["rows_read"], source["rows_kept"], {why: tally["rows"] for why, tally in source["dropped"].items()}


def assert_rendered(result: Prepared, number: int, messages: list[dict[str, str]], side: str, tokenizer: Any) -> None:
    """Against the tokenizer's own rendering of the whole, and of what the model is asked with."""
    pair = result.train[number]
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert pair["prompt_ids"] == asked
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    assert pair["prompt_ids"] + pair[f"{side}_ids"] == whole


def test_alpaca_pairs_lose_the_six_that_are_the_same(pair_recipe: Any, real_tokenizer: Any) -> None:
    result = prepared("rasbt_instruction_with_preference.json", pair_recipe, real_tokenizer)
    assert counts(result) == (1100, 1094, {"identical answers": 6})
    train = result.report.train
    assert (train.tokens, train.prompts, train.duplicates) == (86_577, 1069, 0)
    rows = json.loads(
        Path(os.environ["HYBRID_FT_REAL_DATA"], "preference/rasbt_instruction_with_preference.json").read_text()
    )
    rows = [row for row in rows if row["chosen"] != row["rejected"]]
    for number in range(0, len(rows), 50):
        row = rows[number]
        asked = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        for side in ("chosen", "rejected"):
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": row[side]}]
            assert_rendered(result, number, messages, side, real_tokenizer)


def test_sharegpt_pairs_are_all_kept(pair_recipe: Any, real_tokenizer: Any) -> None:
    result = prepared("lf_dpo_en_demo.json", pair_recipe, real_tokenizer)
    assert counts(result) == (300, 300, {})
    train = result.report.train
    assert (train.tokens, train.prompts, train.duplicates) == (312_252, 295, 5)
    assert train.saved_share == pytest.approx(0.291, abs=1e-3)
    names = {"human": "user", "gpt": "assistant", "system": "system"}
    rows = json.loads(Path(os.environ["HYBRID_FT_REAL_DATA"], "preference/lf_dpo_en_demo.json").read_text())
    for number in range(0, len(rows), 10):
        turns = rows[number]["conversations"]
        for side in ("chosen", "rejected"):
            messages = [{"role": names[t["from"]], "content": t["value"]} for t in [*turns, rows[number][side]]]
            assert_rendered(result, number, messages, side, real_tokenizer)


def test_message_pairs_lose_the_longest_unless_there_is_room(pair_recipe: Any, real_tokenizer: Any) -> None:
    name = "tulu3_preference_sample.jsonl"
    result = prepared(name, pair_recipe, real_tokenizer)
    assert counts(result) == (100, 99, {"longer than data.max_length": 1})
    assert result.report.sources[0].dropped.by_reason["longer than data.max_length"].first[0].endswith(f"{name}:56")
    room = {"data": {"max_length": 8192}, "train": {"batch_tokens": 8192}}
    roomy = prepared(name, pair_recipe, real_tokenizer, **room)
    assert counts(roomy) == (100, 100, {})
    assert int(roomy.report.train.parts()["pair"].max()) == 7386
    begins_with_line_end = {39, 45, 94}
    assert roomy.report.sources[0].count("line_ends_split_from_header").count == len(begins_with_line_end)
    text = Path(os.environ["HYBRID_FT_REAL_DATA"], "preference", name).read_text()
    rows = [json.loads(line) for line in text.rstrip("\n").split("\n")]
    for number, row in enumerate(rows):
        if number not in begins_with_line_end:
            for side in ("chosen", "rejected"):
                assert_rendered(roomy, number, row[side], side, real_tokenizer)
