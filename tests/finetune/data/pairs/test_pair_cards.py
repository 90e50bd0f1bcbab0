from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.cards import suggested
from hybrid_ft.finetune.data.messages.pair_cards import load_pair_card, pair_card_form, suggested_pair_card
from hybrid_ft.finetune.data.messages.preference import Preference, Unusable
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.recipe import shipped

ASKED = {"role": "user", "content": "Why?"}
GOOD = {"role": "assistant", "content": "Because."}
BAD = {"role": "assistant", "content": "No."}

ROWS: dict[str, dict[str, Any]] = {
    "pku-safe-rlhf": {"prompt": "Why?", "response_0": "No.", "response_1": "Because.", "better_response_id": 1},
    "shp": {"history": "Why?", "human_ref_A": "Because.", "human_ref_B": "No.", "labels": 1},
    "helpsteer3": {"context": [ASKED], "response1": "Because.", "response2": "No.", "overall_preference": -2},
    "argilla-preferences": {"instruction": "Why?", "chosen_response": "Because.", "rejected_response": "No."},
    "stack-exchange-paired": {"question": "Why?", "response_j": "Because.", "response_k": "No."},
    "openai-preference": {"input": {"messages": [ASKED]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    "chatbot-arena": {"conversation_a": [ASKED, BAD], "conversation_b": [ASKED, GOOD], "winner": "model_b"},
}


def read(name: str, values: dict[str, Any]) -> Preference:
    return pair_card_form(name, values).convert(values)


def test_every_shipped_card_has_a_row_here() -> None:
    assert shipped.card_names(shipped.PAIR_CARDS) == sorted(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_shipped_card_reads_its_dataset_and_is_suggested_for_it(name: str) -> None:
    pair = read(name, ROWS[name])
    assert (pair.prompt, pair.chosen, pair.rejected) == ([ASKED], GOOD, BAD)
    assert suggested_pair_card([*ROWS[name], "id"]) == name
    assert load_pair_card(name).about


def test_preference_cards_do_not_disturb_the_cards_of_supervised_rows() -> None:
    assert suggested(ROWS["shp"]) is None


@pytest.mark.parametrize("value", [-1, 1, 1.0, "1", 0])
def test_a_value_means_what_the_card_says(value: Any) -> None:
    values = ROWS["helpsteer3"] | {"overall_preference": value}
    if value == 0:
        with pytest.raises(Unusable, match="tie"):
            read("helpsteer3", values)
    else:
        assert read("helpsteer3", values).chosen == (GOOD if value == -1 else BAD)


def test_complaints_name_the_columns_of_the_dataset() -> None:
    with pytest.raises(BadRow, match="^labels: got 3; the card knows 1, 0$"):
        read("shp", ROWS["shp"] | {"labels": 3})
    with pytest.raises(BadRow, match="^response_0 is null; a pair needs both answers"):
        read("pku-safe-rlhf", ROWS["pku-safe-rlhf"] | {"response_0": None})
    with pytest.raises(InputError, match="card shp: no column labels; did you mean label"):
        pair_card_form("shp", ["history", "human_ref_A", "human_ref_B", "label"])


def test_a_card_reaches_into_objects() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    values = ROWS["openai-preference"] | {"input": {"messages": [ASKED], "tools": [tool]}}
    assert read("openai-preference", values).tools == [tool]
    with pytest.raises(BadRow, match="^input.messages is missing; the answers need what they answer"):
        read("openai-preference", values | {"input": "Why?"})


def test_a_card_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("columns: {prompt: q, chosen: good, rejected: bad}\n")
    pair = read(str(path), {"q": "Why?", "good": [GOOD], "bad": "No."})
    assert (pair.prompt, pair.chosen, pair.rejected) == ([ASKED], GOOD, BAD)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("columns: {prompt: q, chosen: good}\n", "must name chosen and rejected"),
        ("columns: {prompt: q, chosen: good, rejected: bad}\npreference: {a: 1}\n", "needs columns.preference"),
        ("columns: {output_1: a, output_2: b, preference: c}\npreference: {x: 3}\n", "preference.x"),
        ("columns: {promt: q, chosen: good, rejected: bad}\n", "mine.yaml:1"),
    ],
)
def test_a_card_that_is_wrong_says_where(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_pair_card(str(path))
    assert complaint in str(caught.value)


def test_a_card_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(InputError, match="chatbot-arena, helpsteer3,.* shp.*did you mean helpsteer3"):
        load_pair_card("helpsteer")
