"""What counts as an invented value."""

import pytest

from hybrid_ft.finetune.evaluation.kept_answers import invented


@pytest.mark.parametrize(
    ("answer", "reference", "count"),
    [
        ('{"a": 1, "b": null}', '{"a": null, "b": null}', (1, 2)),
        ('{"a": null}', '{"a": null, "b": null}', (0, 2)),
        ('{"a": "", "b": 2}', '{"a": null, "b": 2}', (1, 1)),
        ('{"a": "x", "a": "x", "a', '{"a": null}', (1, 1)),  # cut short: the first value written counts
        ('{"a": null, "b": "x', '{"a": null, "b": 2}', (0, 1)),
        ("nothing of the kind", '{"a": null}', (0, 1)),
        ('{"a": 1}', "plain text", (0, 0)),
        ("[1]", "[null]", (0, 0)),
    ],
)
def test_invented_values(answer: str, reference: str, count: tuple[int, int]) -> None:
    assert invented(answer, reference) == count
