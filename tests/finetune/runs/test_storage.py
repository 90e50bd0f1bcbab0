"""Storage is tried before training, its failures are known from whichever library they come, and named with figures."""

import errno
import json
import os
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs import storage

Usage = namedtuple("Usage", "total used free")

TORCH = "[enforce fail at inline_container.cc:672] . unexpected pos 955136 vs 955024. "
SAFETENSORS = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    yield place
    # lazily: torch's writer keeps its file open for as long as its error is referred to
    subprocess.run(["umount", "--lazy", place], check=True)


def free(monkeypatch, count):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, count))


def fail(number):
    def operation(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return operation


def test_a_good_folder_has_a_speed_and_nothing_left_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PROBE_BYTES", 3 * 2**20)
    assert storage.probe(tmp_path) > 1e5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("expected", "written"), [(100_000, 2**20), (5 * 2**20 + 7, 5 * 2**20), (10**12, 64 * 2**20)])
def test_a_probe_is_as_large_as_a_save_up_to_64_mib(tmp_path, monkeypatch, expected, written):
    sizes = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda one, other: (sizes.append(one.stat().st_size), rename(one, other)))
    storage.probe(tmp_path, expected)
    assert sizes == [written]


@pytest.mark.parametrize(
    ("operation", "number", "said"),
    [
        ("fsync", errno.EIO, "cannot sync in {} (Input/output error); give another output"),
        ("rename", errno.EROFS, "cannot rename in {} (Read-only file system); give another output"),
        ("fsync", errno.ENOSPC, "cannot sync in {} (No space left on device); free some space, or give another output"),
    ],
)
def test_the_probe_names_the_operation_that_failed(tmp_path, monkeypatch, operation, number, said):
    monkeypatch.setattr(storage, "PROBE_BYTES", 2**20)
    monkeypatch.setattr(os, operation, fail(number))
    with pytest.raises(InputError) as raised:
        storage.probe(tmp_path)
    assert str(raised.value) == "output: " + said.format(tmp_path)
    assert raised.value.status == 5
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_gives_back_other_bytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PROBE_BYTES", 2**20)

    def garble(here, there, rename=os.rename):
        rename(here, there)
        with open(there, "r+b") as file:
            file.write(b"?")

    monkeypatch.setattr(os, "rename", garble)
    with pytest.raises(InputError, match="cannot read back in .*other bytes came back"):
        storage.probe(tmp_path)


def test_the_probe_on_a_small_a_full_and_a_read_only_disk(small_disk):
    assert storage.probe(small_disk) > 0
    (small_disk / "fill").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(InputError, match=r"cannot write in .* \(No space left on device\); free some space"):
        storage.probe(small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["fill"]
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(InputError, match=r"cannot write in .* \(Read-only file system\)"):
        storage.probe(small_disk)


@pytest.mark.parametrize("lora", [None, {"targets": "all-linear", "rank": 4, "alpha": 8}])
def test_a_checkpoint_is_as_large_as_was_said(start, monkeypatch, lora):
    from hybrid_ft.finetune import models

    made = []
    monkeypatch.setattr(models, "describe_model", lambda recipe, model: made.append(model) or "")
    begun = start(train={"steps": 2, "save_every": 2}, model={"lora": lora} if lora else {})
    checkpoint = begun.folder / "checkpoints" / "checkpoint-2"
    lies = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert storage.checkpoint_bytes(made[0]) == pytest.approx(lies, rel=0.05, abs=64e3)
    assert lies > 80e3  # otherwise the allowance alone would pass


def test_large_models_are_counted_by_weight():
    with torch.device("meta"):
        model = torch.nn.Linear(10_000, 10_000, dtype=torch.bfloat16)
    assert storage.checkpoint_bytes(model) == pytest.approx(
        1e8 * (2 + 5), rel=1e-3
    )  # moments in bfloat16, and 8 bits more of the weight
    model.weight.requires_grad_(False)
    assert storage.checkpoint_bytes(model) == pytest.approx(1e8 * 2, rel=1e-3)


def test_room_is_for_one_checkpoint_more_than_is_kept_and_for_the_result(tmp_path, monkeypatch):
    free(monkeypatch, 34_000)
    storage.check_room(tmp_path, 10_000, keep=2, result_bytes=4_000, present=0)
    free(monkeypatch, 33_999)
    with pytest.raises(InputError) as raised:
        storage.check_room(tmp_path, 10_000, keep=2, result_bytes=4_000, present=0)
    assert str(raised.value) == (
        f"output: {tmp_path} has 34 kB free, and 34 kB are needed: 2 kept checkpoints and the next of 10 kB each, and a "
        "result of 4 kB; lower train.keep, free some space, or give another output"
    )
    assert raised.value.status == 5
    storage.check_room(tmp_path, 10_000, keep=2, result_bytes=4_000, present=1)


def test_keep_is_not_lowered_below_one(tmp_path, monkeypatch):
    free(monkeypatch, 0)
    with pytest.raises(InputError, match="less 5 kB that lie there; free some space, or give another output"):
        storage.check_room(tmp_path, 10_000, keep=1, result_bytes=0, present=5_000)


def test_what_a_save_costs_is_said_in_one_line():
    line = storage.describe(84_100_000_000, 84_100_000_000 / 130, 500, 2)
    assert (
        line == "saves     84.1 GB each, about 2 min 10 s here; every 500 steps, 2 kept; a stop costs a step and a save"
    )
    assert "every step, 1 kept" in storage.describe(1_000, 1e9, 1, 1)


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 kB"), (312_000, "312 kB"), (1_240_000, "1.2 MB"), (84_100_000_000, "84.1 GB")]
)
def test_sizes(count, said):
    assert storage.size(count) == said


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, os.strerror(number)) for number in sorted(storage._FAILURES)),
        SafetensorError(SAFETENSORS),
        SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"),
        RuntimeError(TORCH),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
        OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"),
    ],
    ids=str,
)
def test_failures_of_storage_are_known(error):
    assert storage.no_room(error)
    outer = ValueError("could not save")
    outer.__cause__ = error
    assert storage.no_room(outer)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        RuntimeError("PytorchStreamReader failed reading zip archive: failed finding central directory"),
        RuntimeError("CUDA error: device-side assert triggered"),
        SafetensorError("Error while deserializing header: incomplete metadata, file not fully covered"),
        InputError("already said", 5),
        KeyboardInterrupt(),
    ],
    ids=str,
)
def test_other_errors_are_not_taken_for_them(error):
    assert not storage.no_room(error)


@pytest.mark.parametrize(
    ("error", "needed", "said"),
    [
        (SafetensorError(SAFETENSORS), 1_200_000_000, "(No space left on device): 1.2 GB needed, 300.0 MB free"),
        (RuntimeError(TORCH), 1_200_000_000, "(No space left on device): 1.2 GB needed, 300.0 MB free"),
        (RuntimeError(TORCH), 1_000, "(a file was cut short while it was written): 1 kB needed, 300.0 MB free"),
        (OSError(errno.EDQUOT, ""), None, "(Disk quota exceeded): 300.0 MB free"),
    ],
)
def test_a_save_that_fails_says_what_is_needed_and_what_is_free(tmp_path, monkeypatch, error, needed, said):
    free(monkeypatch, 300_000_000)
    refused = storage.refusal(error, tmp_path / "gone" / "checkpoint-6", needed)
    assert str(refused) == (
        f"{tmp_path / 'gone'}: cannot save checkpoint-6 {said}; the older checkpoints are whole. "
        "Free some space and start the same command again"
    )
    assert refused.status == 5


def test_a_read_only_disk_wants_no_space_and_the_place_need_not_exist(tmp_path):
    error = OSError(errno.EROFS, "Read-only file system")
    refused = storage.refusal(error, tmp_path / "gone" / "checkpoint-6", None)
    assert "Make it writable and start the same" in str(refused)


def test_while_saving_only_failures_of_storage_are_translated(tmp_path):
    with pytest.raises(InputError, match="cannot save model") as raised, storage.saving(tmp_path / "model"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.status == 5
    with pytest.raises(KeyError), storage.saving(tmp_path / "model"):
        raise KeyError("name")


def write_json(file: Path) -> None:
    file.write_text(json.dumps([0] * 2_000_000))


def write_and_sync(file: Path) -> None:
    with open(file, "wb", buffering=0) as out:
        for _ in range(5):
            assert out.write(bytes(2**20)) == 2**20 or out.write(b"?")
        os.fsync(out.fileno())


@pytest.mark.parametrize(
    "write",
    [
        lambda file: save_file({"a": torch.zeros(2_000_000)}, file),
        lambda file: torch.save({"a": torch.zeros(2_000_000)}, file),
        write_json,
        write_and_sync,
    ],
    ids=["safetensors", "torch", "json", "sync"],
)
def test_a_full_disk_is_known_from_what_each_library_raises(small_disk, write):
    with pytest.raises(Exception) as raised:
        write(small_disk / "file")
    assert storage.no_room(raised.value)
    assert "(No space left on device)" in str(storage.refusal(raised.value, small_disk / "checkpoint-6", 8_000_000))
