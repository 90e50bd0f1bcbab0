"""A template of columns cannot leave its sandbox, run without end, or eat the memory."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages import column_templates
from hybrid_ft.finetune.data.messages.column_templates import RUNAWAY_COLUMNS, ColumnTemplate, condition
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.sources.rows import BadRow

ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_templates, "SECONDS", 0.3)


@pytest.mark.parametrize(
    ("template", "kind", "says"),
    [
        (ENDLESS, RUNAWAY_COLUMNS, "takes more than 0.3 s on this row"),
        ("{{ a * 10 ** 10 }}", RUNAWAY_COLUMNS, "takes more than 1 GB of memory on this row"),
        ("{% for a in range(10 ** 9) %}{% endfor %}", "template of columns", "Range too big"),
        ("{{ q.__class__.__mro__ }}", "template of columns", "access to attribute"),
        ("{{ q.append(1) }}", "template of columns", "access to attribute|not safely callable|has no attribute"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "template of columns", "maximum recursion depth"),
        ("{{ 1 / 0 }}", "template of columns", "division by zero"),
        ("{{ q.x }}", "column missing", "has no attribute 'x'; the template asks for it"),
    ],
)
def test_hostile_templates(template: str, kind: str, says: str, short_limits: None) -> None:
    began = time.perf_counter()
    with pytest.raises(BadRow, match=says) as error:
        ColumnTemplate(template)({"q": [1], "a": "x"})
    assert error.value.kind == kind or (kind == "template of columns" and error.value.kind == "column missing")
    assert "\n" not in str(error.value) and time.perf_counter() - began < 60


def test_what_is_constant_is_bounded_too(short_limits: None) -> None:
    """Jinja2 works it out when it reads the template."""
    with pytest.raises(ValueError, match="takes more than 0.3 s or 1 GB to be read"):
        ColumnTemplate("{{ 9 ** (9 ** 9) }}")
    with pytest.raises((ValueError, BadRow), match="takes more than"):
        ColumnTemplate("{{ 'a' * 10 ** 10 }}")({})


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("pairs", [False, True])
def test_a_runaway_stops_the_run_at_its_row(
    pairs: bool, on_bad_row: str, write_rows: Callable[..., Path], recipe: Callable[..., Any], tokenizer: Any,
    short_limits: None,
) -> None:  # fmt: skip
    prompt = f"{{% if 'odd' in q %}}{ENDLESS}{{% endif %}}{{{{ q }}}}"
    answers = {"chosen": "a", "rejected": "b"} if pairs else {"completion": "a"}
    path = write_rows([{"q": "odd" if n > 1 else f"even {n}", "a": "x", "b": "y"} for n in range(40)])
    made = recipe({"path": str(path), "columns": {"prompt": prompt} | answers}, on_bad_row=on_bad_row, max_dropped=1.0)
    if pairs:
        made = type(made).model_validate(made.model_dump() | {"dpo": {}})
    began = time.perf_counter()
    with pytest.raises(InputError) as error:
        prepare(made, tokenizer)
    assert time.perf_counter() - began < 60
    assert str(error.value).startswith(
        f"{path}:3: the template of columns takes more than 0.3 s on this row; 1 bad row"
    )
    assert str(error.value).endswith("Fix the template in columns")


def test_the_columns_that_are_read_are_known() -> None:
    template = ColumnTemplate("{{ a.b }}{{ row['c d'] }}{{ e if e is defined else f }}{{ g | default('x') }}")
    assert template.columns == {"a", "c d", "e", "f", "g"} and template.optional == {"e", "f", "g"}
    assert condition("a and b").columns == {"a", "b"}


@pytest.mark.parametrize(
    ("value", "kept"), [("x", True), (" ", False), ("", False), (None, False), (0, False), (3, True)]
)
def test_a_condition_is_false_for_blanks(value: Any, kept: bool) -> None:
    assert bool(condition("a")({"a": value})) == kept
    assert not condition("a")({})
    assert condition("a > 1")({"a": 2}) and not condition("a > 1")({"a": 1})
