"""A checkpoint is whole or it is not used: every damage to every file is noticed, and names what is damaged."""

import json
import os
import random
from contextlib import nullcontext
from pathlib import Path

import pytest

from hybrid_ft.finetune import disk
from hybrid_ft.finetune.runs import atomic, checkpoints

CONTENTS = {"weights.safetensors": b"w" * 300, "optimizer.pt": b"o" * 40, "sub/shard.bin": b"s" * 9}


def make(folder: Path, step: int) -> Path:
    staged = folder / checkpoints.STAGING / f"checkpoint-{step}"
    for name, content in CONTENTS.items():
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).write_bytes(content + bytes([step]))
    checkpoints.commit(staged, folder / f"checkpoint-{step}")
    return folder / f"checkpoint-{step}"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [*CONTENTS, checkpoints.MANIFEST])
@pytest.mark.parametrize("damage", [Path.unlink, truncate, zero, flip_a_bit])
def test_any_damage_to_any_file_falls_back_to_the_older_checkpoint(tmp_path, name, damage):
    older, newer = make(tmp_path, 9), make(tmp_path, 10)
    assert checkpoints.newest(tmp_path, pytest.fail) == newer
    damage(newer / name)
    said: list[str] = []
    assert checkpoints.newest(tmp_path, said.append) == older
    assert len(said) == 1 and "checkpoint-10" in said[0]
    # a manifest that still reads as one disagrees with the file it lists
    assert Path(name).name in said[0] or (name == checkpoints.MANIFEST and damage is flip_a_bit)
    assert not newer.exists() and len(list(tmp_path.glob("damaged-checkpoint-10-*"))) == 1
    assert checkpoints.newest(tmp_path, pytest.fail) == older


def test_the_same_name_can_be_set_aside_twice(tmp_path):
    for _ in range(2):
        zero(make(tmp_path, 3) / "optimizer.pt")
        assert checkpoints.newest(tmp_path, lambda text: None) is None
    assert len(list(tmp_path.glob("damaged-checkpoint-3-*"))) == 2


def test_every_random_bit_flip_is_noticed(tmp_path):
    chance = random.Random(0)
    folder = make(tmp_path, 1)
    files = [path for path in folder.rglob("*") if path.is_file()]
    for _ in range(60):
        path = chance.choice(files)
        good = path.read_bytes()
        content = bytearray(good)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        fault = checkpoints.fault(folder)
        # whitespace and the like in the manifest may change without changing what it says
        assert fault or json.loads(content) == json.loads(good), path.name
        path.write_bytes(good)
    assert checkpoints.fault(folder) is None


def test_the_newest_is_the_highest_step_whatever_the_dates(tmp_path):
    ten, nine = make(tmp_path, 10), make(tmp_path, 9)
    assert checkpoints.committed(tmp_path) == [nine, ten]
    make(tmp_path, 2)
    checkpoints.rotate(tmp_path, keep=2)
    assert checkpoints.committed(tmp_path) == [nine, ten]


@pytest.mark.parametrize("dies_at", ["write_text", "fsync", "rename"])
def test_a_save_cut_short_leaves_the_older_ones_and_no_trace_after_the_next_start(tmp_path, monkeypatch, dies_at):
    older = make(tmp_path, 1)

    class Killed(BaseException):
        pass

    def die(*args, **kwargs):
        raise Killed

    target = Path if dies_at == "write_text" else checkpoints.os
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(target, dies_at, die)
        make(tmp_path, 2)
    assert checkpoints.newest(tmp_path, pytest.fail) == older
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_everything_is_synced_before_the_rename_and_the_parent_after(tmp_path, monkeypatch):
    """What the disk has seen, in order; a machine that dies in between has lost nothing that was committed."""
    done: list[str] = []
    sync, rename = disk.sync, atomic.os.rename
    monkeypatch.setattr(disk, "sync", lambda path: (done.append(path.name), sync(path)))
    monkeypatch.setattr(atomic.os, "rename", lambda old, new: (done.append("rename"), rename(old, new)))
    make(tmp_path, 1)
    before, after = done[: done.index("rename")], done[done.index("rename") + 1 :]
    assert set(before) == {"weights.safetensors", "optimizer.pt", "shard.bin", "manifest.json", "sub", "checkpoint-1"}
    assert after == [tmp_path.name]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("error", [Killed, OSError("Cannot call rmtree on a symbolic link")])
def test_a_removal_cut_short_is_finished_at_the_next_start(tmp_path, monkeypatch, error):
    """By the end of the process, or by a bucket's mount, which must not be the end of the run."""
    for step in (1, 2):
        make(tmp_path, step)

    def fail(*arguments, **more):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, "rmdir", fail)
        with pytest.raises(Killed) if error is Killed else nullcontext():
            checkpoints.rotate(tmp_path, keep=1)
    assert checkpoints.committed(tmp_path) == [tmp_path / "checkpoint-2"]
    assert any(path.name.startswith(".removing-checkpoint-1-") for path in tmp_path.iterdir())
    assert checkpoints.newest(tmp_path, pytest.fail) == tmp_path / "checkpoint-2"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_checkpoint_that_cannot_be_renamed_goes_with_the_next(tmp_path, monkeypatch):
    for step in (1, 2):
        make(tmp_path, step)

    def busy(*arguments):
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patched:
        patched.setattr(atomic.os, "rename", busy)
        checkpoints.rotate(tmp_path, keep=1)
    assert len(checkpoints.committed(tmp_path)) == 2
    checkpoints.rotate(tmp_path, keep=1)
    assert checkpoints.committed(tmp_path) == [tmp_path / "checkpoint-2"]
