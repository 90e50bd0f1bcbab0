"""Shared memory, limits, memory and disks of this machine."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.doctor.finding import Finding, absent
from hybrid_ft.finetune.machines.hardware import OPEN_FILES, SHARED
from hybrid_ft.finetune.runs import storage
from hybrid_ft.finetune.runs.storage import size

SHARED_MEMORY = 2**30
"""bytes of /dev/shm that several GPUs want: NCCL without P2P goes through it, and a container's usual
64 MiB break it"""
RDMA = "/sys/class/infiniband"
"""a folder for each adapter: InfiniBand, RoCE or EFA"""
LOCKED = 2**30
"""bytes that a process must be allowed to lock, or NCCL cannot register its buffers with such an adapter"""
_IPC_LOCK = 14
"""bit of the capability that lifts this limit"""
_SLOW = 50e6
"""bytes a second below which a disk is too slow for checkpoints"""
_NETWORK = {"nfs": "a network disk", "nfs4": "a network disk", "cifs": "a network disk", "9p": "a shared folder"}


def shared_memory(gpus: int) -> Finding:
    if not os.path.isdir(SHARED):
        return absent(SHARED)
    there = shutil.disk_usage(SHARED).total
    if gpus > 1 and there < SHARED_MEMORY:
        mend = f"{gpus} GPUs want {size(SHARED_MEMORY)}: start the container with --shm-size=8g or --ipc=host"
        return Finding(SHARED, f"{size(there)}; {mend}", red=True)
    return Finding(SHARED, size(there))


def limits() -> Finding:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < OPEN_FILES:
        return Finding("limits", f"{files:,} open files; run ulimit -n {OPEN_FILES} first", red=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding(
        "limits", f"{'any number of' if files == resource.RLIM_INFINITY else f'{files:,}'} open files, {cores} CPUs"
    )


def locked_memory(gpus: int, machines: int = 1) -> Finding:
    """What NCCL needs between machines; on one GPUs meet without an adapter."""
    adapters = sorted(os.listdir(RDMA)) if gpus and os.path.isdir(RDMA) else []
    if not adapters:
        return absent("memlock")
    most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if most == resource.RLIM_INFINITY or _is_lifted(_status()):
        return Finding("memlock", f"any memory may be locked, as {adapters[0]} needs")
    if most >= LOCKED:
        return Finding("memlock", f"{size(most)} may be locked")
    mend = "run ulimit -l unlimited, or start the container with --ulimit memlock=-1"
    said = f"{size(most)} may be locked, and between machines {adapters[0]} needs {size(LOCKED)}: {mend}"
    return Finding("memlock", said, red=machines > 1)


def _is_lifted(status: str) -> bool:
    """Whether /proc/self/status says that this process may lock what it likes."""
    held = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return bool(int(held, 16) >> _IPC_LOCK & 1)


def _status() -> str:
    try:
        return Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def memory(needed: int | None = None) -> Finding:
    """``needed``: bytes that loading the recipe's model takes."""
    there = _memory()
    if there is None:
        return absent("memory")
    if needed is not None and needed > there:
        return Finding(
            "memory", f"{size(there)} free, and loading the weights takes {size(needed)}; take more", red=True
        )
    return Finding("memory", f"{size(there)} free" + (f", {size(needed)} to load the weights" if needed else ""))


def disk(place: Path, needed: int | None = None) -> Finding:
    """Of the nearest folder that exists; ``needed``: bytes of what a run keeps there."""
    folder = next(path for path in [place, *place.absolute().parents] if path.is_dir())
    kind = mount_of(folder.resolve(), _mounts())
    where = f"{folder}, {kind}" if kind else str(folder)
    try:
        speed = storage.probe(folder)
    except InputError as error:
        return Finding("disk", str(error), red=True)
    free = shutil.disk_usage(folder).free
    said = f"{where}: {size(free)} free, written and synced at {size(speed)} a second"
    if needed is not None and needed > free:
        return Finding(
            "disk", f"{said}; a run keeps {size(needed)}: free some, lower train.keep or take another", red=True
        )
    if kind and kind.startswith("a bucket"):
        return Finding("disk", f"{said}; a bucket is not a disk to train on: set output to the machine's own", red=True)
    if speed < _SLOW:
        return Finding("disk", f"{said}; less than {size(_SLOW)} a second: set output to a faster one", red=True)
    return Finding("disk", said)


def mount_of(folder: Path, mounts: str) -> str | None:
    """What stands behind a folder by /proc/mounts: ``a bucket (fuse.goofys)``, ``a network disk
    (nfs4)``; None: a disk."""
    best, kind = "", ""
    for row in mounts.splitlines():
        _, point, found, *_ = row.split(" ")
        point = point.replace("\\040", " ")
        inside = point == "/" or str(folder) == point or str(folder).startswith(point + "/")
        if inside and len(point) >= len(best):
            best, kind = point, found
    if kind.startswith("fuse"):
        return f"a bucket or other FUSE mount ({kind})"
    return f"{_NETWORK[kind]} ({kind})" if kind in _NETWORK else None


def _mounts() -> str:
    try:
        return Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _memory() -> int | None:
    """Bytes available, or what the container's own limit leaves."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    there = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    try:
        most = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no limit: "max"
        return there
    return most - used if there is None else min(there, most - used)
