"""JSON that is read strictly: beside Python's own reader where that is right, refused where it is not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.sources.strict_json import MAX_DEPTH, depth, parse, raw_parse

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_what_is_strict_json_is_read_as_python_reads_it(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    if "\ud800" <= max(text, default="") <= "\udfff":
        return
    assert parse(text) == json.loads(text)
    assert raw_parse(f"  {text} tail", 2) == (value, 2 + len(text))


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "duplicate key", "'a' is given twice"),
        ('{"a": NaN}', "not JSON", "NaN is not a JSON number"),
        ("[-Infinity]", "not JSON", "-Infinity is not a JSON number"),
        ("[1e999]", "not JSON", "1e999 is too large"),
        ('{"a": ', "not JSON", r"not JSON \(expecting value at column 7\)"),
        ('["\0"]', "not JSON", "invalid control character|NUL byte"),
        ('["\\ud83d"]', "half a character", r"first such escape: \\ud83d at column 3"),
        ("9" * 5000, "not JSON", "a number of thousands of digits"),
        ("[" * 65 + "]" * 65, "nested too deep", "more than 64 deep"),
        ("[" * 100_000, "nested too deep", "more than 64 deep"),
    ],
)
def test_what_is_not_is_refused(text: str, kind: str, said: str) -> None:
    with pytest.raises(BadRow, match=said) as refused:
        parse(text, "field: ")
    assert refused.value.kind == kind and str(refused.value).startswith("field: ")


def test_both_halves_of_a_character_are_text_and_the_deepest_nesting_is_read() -> None:
    assert parse('["\\ud83d\\ude00"]') == ["😀"]
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert depth(parse(text)) == MAX_DEPTH


def test_a_reader_goes_on_behind_a_value_that_breaks_a_rule() -> None:
    bad, end = raw_parse('{"a": 1, "a": 2} {"b": 3}', 0)
    assert isinstance(bad, BadRow) and bad.kind == "duplicate key"
    assert raw_parse('{"a": 1, "a": 2} {"b": 3}', end + 1) == ({"b": 3}, 25)
    with pytest.raises(json.JSONDecodeError):
        raw_parse("{'a'", 0)
