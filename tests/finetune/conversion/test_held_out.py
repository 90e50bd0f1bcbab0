"""The loss on held-out rows, before and after a conversion."""

import json
from pathlib import Path

import pytest
from export_helpers import export

from hybrid_ft.hybrid_model.checkpoint.config import BUNDLED


def test_the_loss_on_held_out_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    talk = [{"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "Four."}]
    rows.write_text(json.dumps({"messages": talk}) + "\n")
    assert export(BUNDLED, tmp_path / "out", "--to", "transformers", "--dtype", "bfloat16", "--rows", rows) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("loss"))
    before, after = float(line.split()[1]), float(line.split()[3])
    assert 0 < abs(after - before) < 0.1 and "per token of 1 rows of" in line
