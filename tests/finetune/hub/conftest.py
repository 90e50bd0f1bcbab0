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


@pytest.fixture(scope="session")
def run(start_in: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A LoRA run with an adapter and a merged model, held-out rows and answers."""
    lora = {"lora": LORA["lora"] | {"merge": True}}
    done = start_in(tmp_path_factory.mktemp("for-the-hub"))(
        model=lora, held_out=4, evaluate={"answers": 2, "max_new_tokens": 3, "samples": ["Why?"]}
    )
    assert done.status == 0
    return done


@pytest.fixture
def trained(run: Any, tmp_path: Path) -> Any:
    """A copy that a test may change."""
    return replace(run, folder=copied(run.folder, tmp_path / "run"))
