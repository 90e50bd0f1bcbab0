"""A hub that keeps what it is sent, and a finished run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from pushes import LORA, Hub
from run_helpers import copied


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    return hub


@pytest.fixture(scope="module")
def run(start_once: Any) -> Any:
    """A LoRA run with an adapter and a merged model, held-out rows and answers."""
    lora = {"lora": LORA["lora"] | {"merge": True}}
    return start_once(model=lora, held_out=4, evaluate={"answers": 2, "max_new_tokens": 3, "samples": ["Why?"]})


@pytest.fixture
def trained(run: Any, tmp_path: Path) -> Any:
    """A copy that a test may change."""
    return replace(run, folder=copied(run.folder, tmp_path / "run"))
