"""A folder with a recipe of local files, and what a job of it is asked with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid_ft.finetune.renting.job import Job, make_job
from hybrid_ft.finetune.renting.order import Order

ORDERS = {
    "sky": {"gpu": "h100", "gpus": 8, "bucket": "s3://my-runs", "package": "hybrid-ft==1.0"},
    "hf": {"gpu": "h200", "gpus": 2, "bucket": "me/runs", "time": "12h", "package": "hybrid-ft==1.0"},
    "slurm": {"gpus": 4, "time": "12h"},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a quote and a space in its name: rows, pieces of rows, and recipes of them."""
    folder = tmp_path / "it's here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "my rows").mkdir()
    (folder / "my rows" / "$(touch hacked) train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    for number in (0, 1):
        (folder / "my rows" / f"part-{number}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (folder / "columns.yaml").write_text("{prompt: question, completion: answer}\n")
    (folder / "mine.yaml").write_text(
        "# a comment of the user's\nmodel: {path: me/base}\ndata:\n  sources:\n"
        "    - {path: 'my rows/$(touch hacked) train.jsonl'}\n    - {path: 'my rows/part-*.jsonl'}\n"
        "    - {path: me/rows, columns: columns.yaml}\n    - {path: datasets/quickstart/train.jsonl}\n"
    )
    (folder / "parts").mkdir()
    (folder / "parts" / "first.yaml").write_text(
        "model: {path: me/base}\ndata: {sources: [{path: ../my rows/part-0.jsonl}]}\n"
    )
    (folder / "all.yaml").write_text(
        "stages:\n  - sft: parts/first.yaml\n  - dpo: {data: {sources: [{path: me/pairs}]}, dpo: {reference_cache: cache}}\n"
        "  - export:\nevaluate: {sources: ['my rows/part-1.jsonl', {path: me/questions}]}\n"
    )
    (folder / "hub.yaml").write_text("model: {path: me/base}\ndata: {sources: [{path: me/rows}]}\n")
    return folder


@pytest.fixture
def job(place: Path) -> Callable[..., Job]:
    """``job(on, file, *overrides, **options)``: the job of a recipe of that folder."""

    def make(on: str, file: str = "hub.yaml", *overrides: str, **options: object) -> Job:
        return make_job(file, overrides, Order(on, **(ORDERS[on] | options)))  # type: ignore[arg-type]

    return make
