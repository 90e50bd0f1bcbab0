"""Numbers, lines and records in answers, counted by hand."""

from decimal import Decimal

import pytest

from hybrid_ft.finetune.evaluation.scorers.records import record
from hybrid_ft.finetune.evaluation.scorers.text import contains, exact, number, number_in


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("She has 18 left.\n#### 18", "18"),
        ("#### $1,234.50", "1234.5"),
        ("#### 7 of them\nThat took 3 steps.", "7"),
        (r"so \boxed{\frac{1}{2}} no, \boxed{42}", "42"),
        (r"\boxed{-7} is my answer to question 12", "-7"),
        ("the answer is 5.", "5"),
        ("up by 5%", "5"),
        ("minus \u2212$3.5", "-3.5"),
        ("10-5", "5"),
        ("a.5", "0.5"),
        ("1,2,3", "3"),
        ("12,345", "12345"),
        ("between 1 and .25", "0.25"),
        ("none", None),
    ],
)
def test_numbers(text: str, value: str | None) -> None:
    assert number_in(text) == (None if value is None else Decimal(value))


def test_equal_numbers() -> None:
    assert number("It is $5.00", "#### 5") == {"number": 1.0}
    assert number("6", "5") == {"number": 0.0}
    assert number("six", "no digits") == {"number": 0.0}


def test_exact_and_contains() -> None:
    assert exact(" yes\n", "yes") == {"exact": 1.0} and exact("Yes", "yes") == {"exact": 0.0}
    assert contains("the codes are 17 and ABC", "17\nabc\nxyz") == {"contains": pytest.approx(2 / 3)}


def test_records() -> None:
    reference = '{"a": 1, "b": "x", "c": null, "d": null}'
    assert record('```json\n{"a": 1.0, "b": " x", "c": null, "d": null}\n```', reference) == {
        "fields": 1.0,
        "whole": 1.0,
        "valid": 1.0,
        "invented": 0.0,
    }
    assert record('{"a": true, "b": "x", "c": 5}', reference) == {
        "fields": 0.25,
        "whole": 0.0,
        "valid": 1.0,
        "invented": 0.5,
    }
    assert record('{"a": 1, "c": 7', reference) == {"fields": 0.0, "whole": 0.0, "valid": 0.0, "invented": 0.5}
    assert record('{"a": 1, "e": 2}', '{"a": 1}') == {"fields": 1.0, "whole": 0.0, "valid": 1.0}
    with pytest.raises(ValueError, match="must be a JSON object"):
        record("{}", "text")
