"""Exports in 8 and 4 bits open in plain transformers."""

import importlib
import json
from pathlib import Path

import pytest
from export_helpers import export, logits

from hybrid_ft.hybrid_model.checkpoint.config import BUNDLED


@pytest.mark.slow
@pytest.mark.parametrize(("to", "package", "smaller"), [("int8", "torchao", 3.0), ("int4", "bitsandbytes", 3.2)])
def test_8_and_4_bits_open_in_plain_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, package: str, smaller: float
) -> None:
    pytest.importorskip(package)
    assert export(BUNDLED, tmp_path / "out", "--to", to) == 0
    weights = (tmp_path / "out/model.safetensors").stat().st_size
    assert weights < (BUNDLED / "model.safetensors").stat().st_size / smaller
    found, wanted = logits(tmp_path / "out", device_map="cpu"), logits(BUNDLED)
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.3
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["quantization_config"]["quant_method"] == package and config["rope_parameters"] == {
        "rope_theta": None
    }
    assert (
        tmp_path / "out/tokenizer.json"
    ).exists() and "with the logits from before saving" in capsys.readouterr().out
    assert export(tmp_path / "out", tmp_path / "again", "--to", "transformers") == 2
    assert "quantised already" in capsys.readouterr().err


@pytest.mark.parametrize(("to", "package"), [("int8", "torchao"), ("int4", "bitsandbytes")])
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, to: str, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    assert export(BUNDLED, tmp_path / "out", "--to", to) == 3
    assert f"--to {to}: needs {package}; pip install 'hybrid-ft[quantised]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
