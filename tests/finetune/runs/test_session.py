"""A run's session: how it ends by what ended it, what a later start is told, and the room that its saves need."""

import errno
import os
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import hybrid_ft
from hybrid_ft.errors import RESUMABLE, STORAGE, InputError
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs import device, session
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.signals import Stopped, StopRequest
from hybrid_ft.hybrid_model.adapters import add_lora

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def recipe(folder: RunFolder, **sections: Any) -> Recipe:
    sources = {"model": {"path": "tiny"}, "data": {"sources": [{"path": "rows.jsonl"}]}, "output": str(folder.path)}
    return Recipe.model_validate(sources | sections)


def ended(folder: RunFolder, work: Callable[[StopRequest], int]) -> tuple[int, str]:
    console = Console(record=True, width=200)
    return session.in_folder(folder, console, work), console.export_text()


def raising(error: BaseException) -> Callable[[StopRequest], int]:
    def work(stop: StopRequest) -> int:
        raise error

    return work


def test_a_signal_before_the_first_step_ends_resumable_and_is_named(folder: RunFolder) -> None:
    def work(stop: StopRequest) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    status, screen = ended(folder, work)
    assert status == RESUMABLE and "stopped by SIGTERM; the same command goes on from here" in screen
    assert not folder.path.exists()
    status, screen = ended(folder, raising(Stopped()))
    assert status == RESUMABLE and "stopped by a signal to another process" in screen


def test_a_full_disk_is_refused_by_the_file_and_other_errors_pass(folder: RunFolder) -> None:
    for file, named in (("/a/file.bin", "/a: cannot save file.bin"), (None, f"{folder.path}: cannot save a file")):
        with pytest.raises(InputError) as refused:
            ended(folder, raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file)))
        assert refused.value.status == STORAGE and named in str(refused.value)
    with pytest.raises(OSError, match="No such file"):
        ended(folder, raising(OSError(errno.ENOENT, os.strerror(errno.ENOENT))))


def test_of_one_process_a_closed_connection_is_its_own_error(folder: RunFolder) -> None:
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        ended(folder, raising(RuntimeError("Connection closed by peer")))


def test_a_later_start_is_told_what_is_new_and_it_is_kept(folder: RunFolder) -> None:
    made = recipe(folder)
    told: list[str] = []

    def again(changed: list[str], identity: dict[str, Any]) -> list[str]:
        told.clear()
        session.begin_or_go_on(folder, made, "sft", identity, changed, told.append)
        return [line.split()[0] for line in told]

    with folder.held():
        assert again([], {"train.steps": 4}) == []
        assert again([], {"train.steps": 4}) == []
        folder.finish(step=4)
        folder.record |= {"device": "another one", "processes": 3}
        assert again(["train.steps"], {"train.steps": 8}) == ["extended", "changed", "device", "processes"]
        assert "finished at step 4" in told[0] and "train.steps" in told[1] and "was another one" in told[2]
        assert not folder.finished and folder.record["identity"] == {"train.steps": 8}
        folder.record["device"] = device.name()
        assert again([], {"train.steps": 8}) == []


def test_a_checkpoint_is_looked_for_where_the_run_has_begun(folder: RunFolder, tmp_path: Path) -> None:
    """Else a new run would begin with the weights of one that lies on the mirror."""
    newer = tmp_path / "newer"
    with folder.held():
        assert session.newest_checkpoint(folder, print, lambda here: newer) is None
        session.begin_or_go_on(folder, recipe(folder), "sft", {}, [], print)
        assert session.newest_checkpoint(folder, print, lambda here: newer) == newer


def needed(monkeypatch: pytest.MonkeyPatch, folder: RunFolder, weights: torch.nn.Module, **sections: Any) -> list[int]:
    """How many checkpoints, and bytes of the result, room is asked for."""
    asked: list[int] = []

    def check_room(place: Path, each: int, keep: int, result: int, present: int) -> None:
        asked.extend((keep, result))

    monkeypatch.setattr(session.storage, "check_room", check_room)
    session.check_storage(folder, recipe(folder, **sections), weights, bfloat16=False)
    return asked


def test_room_is_asked_for_all_that_will_lie_there(
    folder: RunFolder, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lora(**more: Any) -> dict[str, Any]:
        return {"path": "tiny", "lora": {"rank": 2} | more}

    folder.path.mkdir()
    model = hybrid_ft.load(tiny_base)
    every = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert needed(monkeypatch, folder, model, train={"keep": 2}) == [2, every]
    best = {"eval": {"fraction": 0.1}, "sources": [{"path": "rows.jsonl"}]}
    load_best = {"every": 2, "load_best": True}
    assert needed(monkeypatch, folder, model, train={"keep": 2}, data=best, evaluate=load_best)[0] == 3
    assert needed(monkeypatch, folder, model, train={"keep": 2}, mirror=str(folder.path / "m"))[0] == 3
    adapted = add_lora(model, rank=2)
    trained = 4 * sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert needed(monkeypatch, folder, adapted, model=lora())[1] == trained < every / 2
    assert needed(monkeypatch, folder, adapted, model=lora(merge=True))[1] == every + trained


def test_a_disk_without_that_room_is_refused_with_what_lies_there_already_counted(
    folder: RunFolder, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.checkpoints / "checkpoint-2").mkdir(parents=True)
    (folder.checkpoints / "checkpoint-2" / "weights").write_bytes(bytes(7_000_000))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 100))
    monkeypatch.setattr(session.storage, "probe", lambda place, each: 1e6)
    model = hybrid_ft.load(tiny_base)
    assert "2 kept" in session.check_storage(folder, recipe(folder), model, bfloat16=False)
    (folder.checkpoints / "checkpoint-2" / "weights").unlink()
    with pytest.raises(InputError, match="has 0 kB free, and 1.2 MB are needed: 2 kept checkpoints"):
        session.check_storage(folder, recipe(folder), model, bfloat16=False)
