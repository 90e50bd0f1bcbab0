"""Run folders with checkpoints of a few bytes, and places that fail when they are told to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.finetune.mirror import copying
from hybrid_ft.finetune.mirror.files import saved_steps
from hybrid_ft.finetune.mirror.mirror import Mirror
from hybrid_ft.finetune.mirror.place import Place
from hybrid_ft.finetune.runs import checkpoints
from hybrid_ft.finetune.runs.folder import RunFolder


def steps(place: str) -> list[int]:
    """Of the checkpoints that are whole there, the newest first."""
    return saved_steps(Place(place).listing())


class Run:
    """A run's folder that is filled as a run fills it."""

    def __init__(self, path: Path, place: str) -> None:
        path.mkdir(exist_ok=True)
        self.folder, self.said = RunFolder(path), []
        if (path / "run.json").exists():
            self.folder.record = json.loads((path / "run.json").read_text())
        self.mirror = Mirror(place, self.folder, self.said.append)

    def begin(self, **identity: Any) -> None:
        self.mirror.claim()
        self.folder.note(identity=identity)
        self.folder.checkpoints.mkdir(exist_ok=True)

    def save(self, step: int, content: bytes = b"w" * 5000, keep: int = 1, best: int | None = None) -> Path:
        staged = self.folder.checkpoints / checkpoints.STAGING / f"checkpoint-{step}"
        (staged / "sub").mkdir(parents=True)
        (staged / "weights.safetensors").write_bytes(content + str(step).encode())
        (staged / "sub/state.json").write_text(json.dumps({"step": step}))
        if best:
            (staged / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
        final = self.folder.checkpoints / f"checkpoint-{step}"
        checkpoints.commit(staged, final)
        with open(self.folder.metrics, "a") as out:
            out.write(json.dumps({"step": step}) + "\n")
        self.mirror.take(self.folder.checkpoints, keep, {best})
        return final

    def finish(self, step: int) -> None:
        (self.folder.path / "model").mkdir()
        (self.folder.path / "model/model.safetensors").write_bytes(b"result")
        self.folder.finish(step=step, results=["model"])

    def wait(self) -> None:
        copying = self.mirror._copying
        assert copying is not None
        copying.tell()
        assert copying.wait(120, 120)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow one another without a pause to speak of."""
    monkeypatch.setattr(copying, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(copying, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr("hybrid_ft.finetune.mirror.mirror._PAUSE", 0.0)


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, and a store of objects in this process's memory."""
    return str(tmp_path / "mirror") if request.param == "folder" else f"memory://{tmp_path.name}/{request.node.name}"


@pytest.fixture
def run(tmp_path: Path, place: str) -> Callable[..., Run]:
    return lambda name="run", where=place: Run(tmp_path / name, where)
