"""A GPU that fails the kernels' self-test is trained on no further."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.training import run


def test_nothing_is_trained_and_nothing_left_behind(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(model: torch.nn.Module, dtype: torch.dtype) -> None:
        asked.append(dtype)
        raise InputError("NVIDIA H200: dk is off by 3e-01", ENVIRONMENT)

    monkeypatch.setattr(run, "check_gpu", refuse)
    with pytest.raises(InputError, match="dk is off") as raised:
        start(train={"steps": 1})
    assert raised.value.status == ENVIRONMENT
    assert asked == [torch.float32]
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == []
