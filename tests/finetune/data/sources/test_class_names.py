"""Numbers of classes that datasets has named: a column's template may ask for the name."""

import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest

from hybrid_ft.finetune.data.messages.columns import row_format
from hybrid_ft.finetune.data.sources import hub
from hybrid_ft.finetune.data.sources.class_names import ClassNumber, naming
from hybrid_ft.finetune.data.sources.rows import BadRow, Row
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.recipe.data_section import Source

KINDS = ["Fees", "Governing Laws"]
FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=KINDS),
        "labels": datasets.List(datasets.ClassLabel(names=KINDS)),
    }
)
ROWS = [
    {"text": "Norwegian law governs.", "label": 1, "labels": [0, 1]},
    {"text": "Ten a year.", "label": 0, "labels": []},
    {"text": "Nobody knows.", "label": -1, "labels": [1]},
]


@pytest.fixture(params=["parquet", "folder", "hub"])
def rows(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """The rows as they come from a file, from what ``save_to_disk`` writes, and from the hub."""
    made = datasets.Dataset.from_list(ROWS, features=FEATURES)
    path = str(tmp_path / "rows.parquet")
    if request.param == "parquet":
        made.to_parquet(path)
    elif request.param == "folder":
        path = str(tmp_path / "rows")
        made.save_to_disk(path)
    else:
        path = "someone/rows"
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
        monkeypatch.setattr(hub, "reachable", lambda: True)
    return [row for row in open_source(Source(path=path)).rows if isinstance(row, Row)]


def converted(columns: Any, row: Row) -> Any:
    form = row_format(Source.model_validate({"path": "rows.jsonl", "columns": columns}), [row])
    assert form is not None
    return form.convert(row.values).messages[-1]["content"]


def test_numbers_stay_numbers_and_have_names(rows: list[Row]) -> None:
    assert [row.values for row in rows] == ROWS
    assert [row.values["label"].name for row in rows[:2]] == ["Governing Laws", "Fees"]
    assert not isinstance(rows[2].values["label"], ClassNumber)
    names = {"prompt": "text", "completion": "{{ labels | map(attribute='name') | join(', ') }} {{ label }}"}
    assert converted(names, rows[0]) == "Fees, Governing Laws 1"
    assert converted("ledgar", rows[0]) == "Governing Laws"
    assert pickle.loads(pickle.dumps(rows[0].values["label"])).name == "Governing Laws"


def test_a_number_without_a_name_is_told(rows: list[Row]) -> None:
    with pytest.raises(BadRow, match="has no attribute 'name'; the template asks for it"):
        converted("ledgar", rows[2])


@pytest.mark.parametrize(
    "features",
    [{"label": None}, {"label": []}, {"label": {"_type": "ClassLabel"}}, {"label": {"_type": "List", "feature": 3}}],
)
def test_features_of_no_known_form_name_nothing(features: dict[str, Any]) -> None:
    assert naming(features) == {}


def test_lists_as_older_versions_write_them() -> None:
    named = naming({"labels": [{"names": KINDS, "_type": "ClassLabel"}]})
    assert [one.name for one in named["labels"]([1, 0])] == ["Governing Laws", "Fees"] and named["labels"](None) is None
