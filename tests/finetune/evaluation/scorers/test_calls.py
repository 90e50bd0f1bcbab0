"""Calls in the forms that models write, and what counts as the same calls."""

import pytest

from hybrid_ft.finetune.evaluation.scorers.calls import calls, calls_in

CALL = ("find", {"city": "Oslo", "days": 3})


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "find", "arguments": {"city": "Oslo", "days": 3}}',
        '[{"name": "find", "arguments": "{\\"city\\": \\"Oslo\\", \\"days\\": 3}"}]',
        '{"type": "function", "function": {"name": "find", "arguments": {"days": 3.0, "city": "Oslo"}}}',
        'Let me look.\n<tool_call>\n{"name": "find", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>',
        "<function_calls>find(city='Oslo', days=3)</function_calls>",
        'find(city="Oslo", days=3)',
        "[find(days=3, city='Oslo')]",
        "```python\nfind(city='Oslo', days=3)\n```",
        "<tool_call><function=find>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n3\n</parameter></function></tool_call>",
    ],
)
def test_one_call_in_every_form(text: str) -> None:
    assert calls_in(text) == [CALL]
    assert calls(text, [CALL]) == {"calls": 1.0, "functions": 1.0}


@pytest.mark.parametrize("text", ["I cannot help with that.", "", "hello", "print('x')", "42", "find(**x)", '{"a": 1}'])
def test_words_are_no_calls(text: str) -> None:
    assert calls_in(text) == []
    assert calls(text, []) == {"calls": 1.0, "functions": 1.0}


def test_the_order_does_not_count_and_a_call_too_many_does() -> None:
    two = 'find(city="Oslo", days=3)\nfind(city="Rome", days=None, deep=true)'
    other = ("find", {"city": "Rome", "days": None, "deep": True})
    assert calls(two, [other, CALL])["calls"] == 1.0
    assert calls(two, [CALL]) == {"calls": 0.0, "functions": 0.0}
    assert calls('find(city="Oslo", days=4)', [CALL]) == {"calls": 0.0, "functions": 1.0}
    assert calls('find(city="Oslo", days=3)', []) == {"calls": 0.0, "functions": 0.0}
    assert calls('find(city="Oslo", days=3)', [CALL, CALL])["calls"] == 0.0
