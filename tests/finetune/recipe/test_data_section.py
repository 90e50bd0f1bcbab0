"""The section data: mappings that contradict themselves, keys as YAML spells them, short forms."""

from typing import Any

import pytest
from pydantic import ValidationError

from hybrid_ft.finetune.recipe.data_section import Columns, Data, HeldOut, Source

TURN = {"role": "user", "content": "{{ q }}"}


@pytest.mark.parametrize(
    "given",
    [
        {"file": "gsm8k"},
        {"messages": [TURN]},
        {"turns": "dialog", "role": "speaker", "content": "text", "system": "s"},
        {"prompt": "q", "completion": "a", "system": "s", "tools": "t", "label": "good"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"output_1": "a", "output_2": "b", "preference": "p"},
        {"prompt": "q", "answers": "a", "answer": "text", "scores": "s"},
        {"answers": "a", "ranks": "r"},
    ],
)
def test_what_a_mapping_can_say(given: dict[str, Any]) -> None:
    made = Columns.model_validate(given)
    assert made.contradiction() is None
    assert made.pairs == bool(given.keys() & {"chosen", "output_1", "answers"})
    assert made.named() == {
        key: value for key, value in given.items() if key not in ("file", "messages", "role", "content")
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"file": "gsm8k", "prompt": "q"}, "must be a file or a mapping, not both"),
        ({"prompt": "q"}, "must have messages, turns, or prompt and completion"),
        ({"messages": [TURN], "turns": "t"}, "must have messages, turns, or prompt"),
        ({"prompt": "q", "completion": "a", "role": "r"}, "name the column that holds those: turns"),
        ({"messages": [TURN], "system": "s"}, "put system among them"),
        ({"messages": [{"role": "user"}]}, "the user message must have content or tool_calls"),
        ({"prompt": "q", "completion": "a", "preference": "p"}, "preference needs output_1 and output_2"),
        ({"prompt": "q", "completion": "a", "scores": "s"}, "scores needs answers"),
        ({"chosen": "a", "rejected": "b", "completion": "c"}, "must map rows or pairs, not both"),
        ({"prompt": "q", "chosen": "a"}, "must name chosen and rejected, or output_1"),
        ({"output_1": "a", "output_2": "b"}, "must name chosen and rejected, or output_1"),
        ({"answers": "a"}, "must name answers and either scores or ranks"),
        ({"answers": "a", "scores": "s", "ranks": "r"}, "must name answers and either scores or ranks"),
        ({"answers": "a", "scores": "s", "chosen": "c"}, "must name answers and either scores or ranks"),
        ({"answers": "{{ a }}", "scores": "s"}, "answers must be the name of a column or key"),
    ],
)
def test_a_mapping_that_contradicts_itself_says_what_is_wrong(given: dict[str, Any], said: str) -> None:
    assert said in str(Columns.model_validate(given).contradiction())


def test_keys_are_as_they_are_spelled() -> None:
    """YAML reads numbers and truth values where the rows have words."""
    made = Source.model_validate(
        {"path": "a", "columns": "gsm8k", "roles": {0: "user", True: "assistant"}, "labels": {5: True}}
    )
    assert made.roles == {"0": "user", "true": "assistant"} and made.labels == {"5": True}
    assert made.columns == Columns(file="gsm8k")


def test_held_out_rows_are_wanted_in_each_way() -> None:
    assert not HeldOut().wanted
    for given in ({"fraction": 0.1}, {"count": 3}, {"sources": [{"path": "a"}]}):
        assert HeldOut.model_validate(given).wanted
    with pytest.raises(ValidationError):
        HeldOut(fraction=1.0)


def test_plain_text_is_what_every_source_says() -> None:
    text, rows = {"path": "a", "format": "text"}, {"path": "b"}
    assert Data.model_validate({"sources": [text]}).plain_text
    assert not Data.model_validate({"sources": [text, rows]}).plain_text
    assert not Data.model_validate({"sources": [text], "eval": {"sources": [rows]}}).plain_text
    assert Data.model_validate({"sources": [text], "eval": None}).eval == HeldOut()
