"""Single files of hub datasets, by hf://datasets/ORG/NAME/FILE."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from hybrid_ft.errors import BAD_INPUT, ENVIRONMENT, InputError
from hybrid_ft.finetune.data.sources import hub
from hybrid_ft.finetune.data.sources.rows import Row
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.recipe.data_section import Source
from hybrid_ft.finetune.recipe.hub_files import hub_dataset, repository
from hybrid_ft.finetune.recipe.load import load_recipe

NAME = "hf://datasets/some-one/rows.v2/data/test.tsv"


def test_its_parts() -> None:
    assert repository(NAME) == ("some-one/rows.v2", "data/test.tsv")
    assert hub_dataset(NAME) == hub_dataset("some-one/rows.v2") == "some-one/rows.v2"


@pytest.mark.parametrize(
    "name",
    ["hf://datasets/some-one/rows", "hf://datasets/some-one/rows/", "hf://datasets/a/b/data/*.tsv", "hf://datasets/a/b//c",
     "hf://datasets//b/c.tsv", "hf://datasets/a/b/data/"],
)  # fmt: skip
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(
        InputError, match=r"data.sources.0.path: got '.*'; must name one file of a hub dataset"
    ) as error:
        load_recipe("quickstart/sft", [f"data.sources=[{{path: '{name}'}}]"])
    assert error.value.status == BAD_INPUT and "\n" not in str(error.value)
    with pytest.raises(InputError, match="must name one file"):
        open_source(Source(path=name))


def test_it_is_read_as_a_file_with_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(*names: str, **more: str | None) -> str:
        asked.append((*names, more["repo_type"], more["revision"]))
        return str(tmp_path / "test.tsv")

    (tmp_path / "test.tsv").write_text("prompt\tcompletion\n1 + 1?\t2\n")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    (source,) = load_recipe("quickstart/sft", [f"data.sources=[{{path: '{NAME}', revision: v1}}]"]).data.sources
    opened = open_source(source)
    assert [row.values for row in opened.rows if isinstance(row, Row)] == [{"prompt": "1 + 1?", "completion": "2"}]
    assert opened.name == NAME and opened.files == [str(tmp_path / "test.tsv")]
    assert asked == [("some-one/rows.v2", "data/test.tsv", "dataset", "v1")]


@pytest.mark.parametrize(
    ("failure", "status", "said"),
    [
        (
            LocalEntryNotFoundError("no\nnetwork"),
            ENVIRONMENT,
            "the hub cannot be reached, and the cache does not hold it",
        ),
        (EntryNotFoundError("404\nnot found"), BAD_INPUT, "some-one/rows.v2 has no file data/test.tsv"),
        (OSError("disk\nfull"), ENVIRONMENT, "cannot be loaded from the hub"),
    ],
)
def test_failures_are_one_line(failure: Exception, status: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    with pytest.raises(InputError, match=said) as error:
        open_source(Source(path=NAME))
    assert error.value.status == status and "\n" not in str(error.value) and str(error.value).startswith(NAME)
