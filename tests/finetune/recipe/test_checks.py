"""What the schema alone cannot refuse: secrets, trackers that are not installed."""

import subprocess
import sys

import pytest
from recipe_files import MINIMAL, mistakes, write

from hybrid_ft.finetune.recipe.load import load_recipe

pytestmark = pytest.mark.usefixtures("folder")


def test_missing_tracker_is_named() -> None:
    if subprocess.run([sys.executable, "-c", "import trackio"], capture_output=True, check=False).returncode == 0:
        pytest.skip("trackio is installed here")
    (line,) = mistakes(MINIMAL, "train.trackers=[trackio]")
    assert line == "override train.trackers: train.trackers.0: got trackio, which is not installed; pip install trackio"


def test_nothing_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    recipe = load_recipe(write(MINIMAL + "evaluate: {samples: ['${HF_TOKEN} $HF_TOKEN']}\n"))
    assert recipe.evaluate.samples == ["${HF_TOKEN} $HF_TOKEN"]


def test_a_secret_under_an_unknown_key_is_not_echoed() -> None:
    assert "hf_canary" not in "\n".join(mistakes(MINIMAL + "hub_token: hf_canary\n", "api_key=hf_canary"))
