"""The model that is asked, and tasks of lm_eval's in a folder of their own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from evaluate_runs import TASKS as OWN_TASKS
from stock_files import TASKS as STOCK_TASKS

import hybrid_ft


@pytest.fixture(scope="module")
def model(steady_base: Path) -> Any:
    return hybrid_ft.load(steady_base).eval()


@pytest.fixture
def stock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [
        {"q": f"what is {n} and {n % 5}" + " more" * (n % 7), "a": str(n), "y": n % 3, "c": [f"it {n}", "none", "a b c d"]}
        for n in range(24)
    ]  # fmt: skip
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in STOCK_TASKS.items():
        Path(f"{name}.yaml").write_text(f"task: {name}\n" + text.replace("ROWS", str(tmp_path / "rows.jsonl")))
    return tmp_path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steady_base: Path) -> Path:
    """Rows and tasks, and two models that differ."""
    import hybrid_ft
    from hybrid_ft.hybrid_model.checkpoint.save import save
    from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer

    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"say {number}", "completion": f"it is {number}"} for number in range(9)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    letters = [{"prompt": f"which {number}", "completion": "ab"[number % 2]} for number in range(12)]
    Path("letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in letters))
    for name, text in OWN_TASKS.items():
        Path(f"{name}.yaml").write_text(text)
    shutil.copytree(steady_base, "first")
    save(hybrid_ft.load(steady_base, from_scratch=True, seed=7), Path("second"), load_tokenizer(steady_base))
    return tmp_path
