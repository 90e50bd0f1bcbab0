"""The catalogue of bad inputs, each given to the command as a user would give it.

Every one is refused on a line that names its place, in seconds, with nothing written and no weight loaded.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_data
import bad_models
import bad_questions
import bad_recipes
import pytest
from refusals import faults

CATALOGUE = [*bad_data.CASES, *bad_recipes.CASES, *bad_models.CASES, *bad_questions.CASES]
BAR = "one line naming file, line or key; status 2 or 3; nothing written"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_names_are_each_of_one_case() -> None:
    names = [case.name for case in CATALOGUE]
    assert len(set(names)) == len(names) >= 70


@pytest.mark.parametrize("case", CATALOGUE[::16], ids=lambda case: case.name)
def test_a_share_of_the_catalogue(case: Any, tmp_path: Path) -> None:
    assert faults(case, tmp_path / "here") == []


@pytest.mark.faults
def test_the_catalogue(tmp_path: Path, faults_row: Callable[..., None]) -> None:
    found = [faults(case, tmp_path / str(number)) for number, case in enumerate(CATALOGUE)]
    failures = [" | ".join(each) for each in found if each]
    faults_row("bad inputs, all of them", BAR, len(CATALOGUE), failures)
    assert not failures, "\n".join(failures[:10])
