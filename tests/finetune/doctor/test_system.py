"""Disks, shared memory, limits and memory of this machine."""

from pathlib import Path

import pytest

from hybrid_ft.finetune.doctor import system

MOUNTS = (
    "overlay / overlay rw 0 0\n"
    "bucket /runs fuse.goofys rw 0 0\n"
    "server:/x /runs\\040far nfs4 rw 0 0\n"
    "/dev/nvme0n1 /runs/fast ext4 rw 0 0\n"
)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/elsewhere", None),
        ("/runs/mine", "a bucket or other FUSE mount (fuse.goofys)"),
        ("/runs far/mine", "a network disk (nfs4)"),
        ("/runs/fast/mine", None),
        ("/runsother", None),
    ],
)
def test_what_stands_behind_a_folder(folder: str, kind: str | None) -> None:
    assert system.mount_of(Path(folder), MOUNTS) == kind


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system.storage, "probe", lambda folder: 1e9)
    assert not system.disk(tmp_path / "not" / "yet").red
    assert system.disk(tmp_path, needed=10**18).red
    monkeypatch.setattr(system.storage, "probe", lambda folder: 1e6)
    assert "1.0 MB a second" in system.disk(tmp_path).said and system.disk(tmp_path).red
    monkeypatch.setattr(system, "mount_of", lambda folder, mounts: "a bucket or other FUSE mount (fuse)")
    assert system.disk(tmp_path).red


def test_shared_memory_limits_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        total = 64 * 2**20

    monkeypatch.setattr(system.shutil, "disk_usage", lambda place: Small)
    monkeypatch.setattr(system.os.path, "isdir", lambda place: True)
    assert system.shared_memory(8).red and not system.shared_memory(1).red
    monkeypatch.setattr(system.resource, "getrlimit", lambda which: (256, 256))
    assert "ulimit -n 1024" in system.limits().said and system.limits().red
    monkeypatch.setattr(system, "_memory", lambda: 10**9)
    assert system.memory(2 * 10**9).red and not system.memory(10**8).red


STATUS = "Name:\tpython\nCapInh:\t0000000000000000\nCapEff:\t{}\n"
NONE, ALL, IN_A_CONTAINER = "0000000000000000", "000001ffffffffff", "00000000a80425fb"


def test_who_may_lock_what_it_likes() -> None:
    assert system._is_lifted(STATUS.format(ALL))
    assert not system._is_lifted(STATUS.format(NONE)) and not system._is_lifted("")
    assert not system._is_lifted(STATUS.format(IN_A_CONTAINER))  # docker's own, of root


def test_memory_that_an_adapter_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = [8 * 2**20]
    monkeypatch.setattr(system, "RDMA", str(tmp_path))
    monkeypatch.setattr(system, "_status", lambda: STATUS.format(NONE))
    monkeypatch.setattr(system.resource, "getrlimit", lambda which: (most[0], most[0]))
    assert not system.locked_memory(8).here  # no adapter
    (tmp_path / "mlx5_0").mkdir()
    assert not system.locked_memory(0).here
    alone, several = system.locked_memory(8), system.locked_memory(8, 2)
    assert not alone.red and several.red and several.said == alone.said
    assert (
        "8.4 MB may be locked, and between machines mlx5_0 needs" in alone.said and "ulimit -l unlimited" in alone.said
    )
    most[0] = 2**34
    assert not system.locked_memory(8, 2).red
    most[0] = system.resource.RLIM_INFINITY
    assert not system.locked_memory(8, 2).red
    most[0] = 2**16
    monkeypatch.setattr(system, "_status", lambda: STATUS.format(ALL))
    assert not system.locked_memory(8, 2).red
