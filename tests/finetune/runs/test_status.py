"""What a supervisor is told of a run's folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs.status import status


def a_run(folder: Path, saved: int = 0, not_finite: int = 0, **record: Any) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    for step in range(1, saved + 1):
        (folder / f"checkpoints/checkpoint-{step}").mkdir()
    (folder / "checkpoints/.staging").mkdir()
    if not_finite:
        (folder / f"not-finite-step-{not_finite}-process-1.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("run", "code", "text"),
    [
        ({"saved": 12, "finished": {"at": "now", "step": 12}}, 0, "finished at step 12"),
        ({"saved": 11, "finished": None}, 75, "not finished; the last save is step 11; the same command goes on"),
        ({}, 75, "not finished; nothing saved yet; the same command goes on"),
        (
            {"saved": 2, "not_finite": 3},
            4,
            "stopped at step 3, whose loss or gradient was not finite; the last save is step 2",
        ),
        ({"saved": 3, "not_finite": 3}, 75, "not finished; the last save is step 3; the same command goes on"),
    ],
)
def test_a_run(tmp_path, run, code, text):
    folder = a_run(tmp_path / "run", **run)
    found = status(folder)
    assert (found.code, found.text) == (code, f"{folder}: {text}")


def test_stages(tmp_path):
    record = tmp_path / "pipeline.json"
    record.write_text('{"stages": {}}')
    assert status(tmp_path).code == 75
    a_run(tmp_path / "1-sft", finished={"step": 3})
    a_run(tmp_path / "10-dpo", saved=1)
    a_run(tmp_path / "9-sft", finished={"step": 3})
    assert status(tmp_path).text.startswith(f"{tmp_path / '10-dpo'}: not finished; the last save is step 1")
    (tmp_path / "10-dpo/run.json").write_text('{"finished": {"step": 4}}')
    assert status(tmp_path).text == f"{tmp_path}: stages are left; the same command goes on"
    record.write_text('{"stages": {}, "finished": true}')
    assert (status(tmp_path).code, status(tmp_path).text) == (0, f"{tmp_path}: all stages are finished")


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run.json: (cannot be read|must hold an object)"):
        status(tmp_path)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match="must be a run's folder"):
        status(tmp_path / "no")
