"""Worker processes on this machine: signals passed down, exit statuses passed up.

torchrun and accelerate launch turn every status of a worker into 1, and end the workers 30 seconds after one of them
has failed, whatever that one's status and whatever the others are writing: a checkpoint of a 7B is 89 GB. Here the
workers are children of this process, and what they say by their statuses is what the command says.

They meet in a store that this process holds, so that no port is chosen before it is bound.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.runs.signals import ECHO, LAUNCHER, RESUMABLE

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_TICK = 0.1
_NOTICE = 15.0  # seconds in which the others notice by themselves that one has failed
_LAST_LINES = 20
_KNOWN_BY = 10.0  # seconds in which machine 0 must find its own name: a cluster may only just have given it
_PLACE = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:\[\]]+)):([0-9]{1,5})", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Nodes:
    """The machines of a launch. ``rendezvous``: host:port of machine 0, where all of them meet."""

    count: int = 1
    rank: int = 0
    rendezvous: str | None = None

    def __post_init__(self) -> None:
        for option, given in (("--node-rank", self.rank > 0), ("--rendezvous", self.rendezvous is not None)):
            if given and self.count == 1:
                raise InputError(f"{option}: goes with --nodes, the number of machines, which must then be 2 or more")
        if not 0 <= self.rank < self.count:
            raise InputError(f"--node-rank: {self.rank} must be from 0 to {self.count - 1}, one less than --nodes")
        if self.count > 1 and self.rendezvous is None:
            raise InputError("--nodes: several machines need --rendezvous HOST:PORT, an address of machine 0")

    def address(self) -> tuple[str, int]:
        """Host and port to meet at; port 0 on a single machine: any that is free."""
        if self.count == 1:
            return "127.0.0.1", 0
        found = _PLACE.fullmatch(self.rendezvous or "")
        if found is None or not 0 < int(found[3]) < 65536:
            raise InputError(
                f"--rendezvous: {self.rendezvous!r} must be HOST:PORT with a port from 1 to 65535, of IPv6 [HOST]:PORT"
            )
        return found[1] or found[2], int(found[3])


@dataclass
class _Worker:
    rank: int
    process: subprocess.Popen[bytes]
    log: Path | None
    """of its screen; None: it has this process's"""


@dataclass
class _Group:
    """The workers of one start, and the signals they were sent."""

    workers: list[_Worker] = field(default_factory=list)
    received: signal.Signals | None = None
    at: float = 0.0

    def running(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.process.poll() is None]

    def failed(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.process.poll()]

    def send(self, number: int) -> None:
        for worker in self.running():
            worker.process.send_signal(number)

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on: the first asks for a stop at a step's end, one that comes later ends
        the workers at once."""
        now = time.monotonic()
        if self.received is None or now - self.at >= ECHO:
            if self.received is None:
                self.received, self.at = signal.Signals(number), now
            self.send(number)


def launch(
    command: Sequence[str],
    processes: int,
    *,
    nodes: Nodes | None = None,
    grace: float = 600.0,
    restarts: int = 0,
    logs: Path | None = None,
    say: Callable[[str], None] = print,
    announce: Callable[[int], None] | None = None,
) -> int:
    """Run ``command`` in ``processes`` processes on this machine. Returns the status that they agree on.

    command   program and arguments
    grace     seconds that workers have for ending after a signal or after one of them has ended, then SIGKILL
    restarts  how often the command is started again after status 75 without a signal to this process; one machine only
    announce  on machine 0: the workers meet at a free port, and this tells it to the other machines
    logs      folder of ``rank-N.log``, the screens of all workers but number 0; None: a temporary one, kept on failure

    The status is that of the first worker whose status is an error (2 to 5, or 1), else 75 where one was stopped or
    killed, else 0. Raises InputError where the machines cannot meet.
    """
    nodes = nodes or Nodes()
    check_restarts(restarts, nodes)
    place = logs or Path(tempfile.mkdtemp(prefix="hybrid-ft-logs-"))
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--logs: cannot make {place} ({error.strerror}); give another folder") from None
    status, group = 1, _Group()
    for attempt in range(restarts + 1):
        group = _start_once(command, processes, nodes, grace, place, announce)
        status = _status(group)
        if status != RESUMABLE or group.received is not None:
            break
        if attempt < restarts:
            say(f"stopped with status {RESUMABLE}; start {attempt + 2} of {restarts + 1}")
    _tell(group, status, place, say)
    if not status and logs is None:
        _forget(place)
    return status


def check_restarts(restarts: int, nodes: Nodes) -> None:
    if restarts and nodes.count > 1:
        raise InputError("--restarts: must be 0 with several machines; let what started them start all of them again")


def _start_once(
    command: Sequence[str],
    processes: int,
    nodes: Nodes,
    grace: float,
    logs: Path,
    announce: Callable[[int], None] | None,
) -> _Group:
    """Start the workers and wait for their end."""
    group = _Group()
    with ExitStack() as around:
        host, port = nodes.address()
        store = store_at(host, 0 if announce else port) if nodes.rank == 0 else None
        if announce and store:
            announce(store.port)
        common = _environment(processes, nodes, host, store.port if store else port)
        around.enter_context(_passed_on(group))
        around.callback(_kill, group)
        for local in range(processes):
            rank = nodes.rank * processes + local
            if group.received is not None:  # before all of them were there
                break
            log = None if rank == 0 else logs / f"rank-{rank}.log"
            screen = around.enter_context(open(log, "ab")) if log else None
            group.workers.append(_Worker(rank, _spawn(command, common, rank, local, screen), log))
        _wait(group, grace)
    return group


def _spawn(
    command: Sequence[str], common: dict[str, str], rank: int, local: int, screen: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=common | {"RANK": str(rank), "LOCAL_RANK": str(local)},
        stdin=subprocess.DEVNULL,
        stdout=screen,
        stderr=subprocess.STDOUT if screen else None,
    )


def _environment(processes: int, nodes: Nodes, host: str, port: int) -> dict[str, str]:
    """What every worker reads; what the user has set of the last two stays."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    return (
        {"OMP_NUM_THREADS": str(threads), "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
        | os.environ
        | {
            "WORLD_SIZE": str(processes * nodes.count),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
            # torch's env:// rendezvous: a client of the store that is there, also in worker 0
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            LAUNCHER: str(os.getpid()),
        }
    )


def store_at(host: str, port: int) -> Any:
    """The store that workers meet in, held by machine 0 as long as they live; port 0: any that is free."""
    from torch.distributed import DistError, TCPStore

    _check_known(host)
    try:
        return TCPStore(host, port, is_master=True, wait_for_workers=False)
    except (DistError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--rendezvous: cannot listen at {host}:{port} ({reason}); name a free port of this machine", ENVIRONMENT
        ) from None


def _check_known(host: str) -> None:
    """torch would look for a name that nobody has for five minutes, and say so in lines of C++."""
    end = time.monotonic() + _KNOWN_BY
    while True:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            if time.monotonic() < end:
                time.sleep(_TICK)
                continue
            raise InputError(
                f"--rendezvous: {host!r} must be a host that this machine knows ({error.strerror}); give an address of machine 0",
                ENVIRONMENT,
            ) from None
        return


@contextmanager
def _passed_on(group: _Group) -> Iterator[None]:
    """Inside the block this process's signals go to the workers; those that its user ignores stay ignored."""
    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, group.hear) for number in heard}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _wait(group: _Group, grace: float) -> None:
    """Until all have ended. What hangs after one has ended, or after a signal, is ended when its time is over."""
    ended_at: float | None = None
    told = False
    while running := group.running():
        now = time.monotonic()
        if ended_at is None and len(running) < len(group.workers) and group.failed():
            ended_at = now
        if ended_at is not None and not told and group.received is None and now - ended_at > _NOTICE:
            told = True
            # the first signal lets them finish what they write; where one was stopped by a signal of somebody else's,
            # the others may have heard it too, and a second one would cut their save short
            if all(worker.process.returncode != RESUMABLE for worker in group.failed()):
                group.send(signal.SIGTERM)
        since = [at for at in (ended_at, group.at if group.received else None) if at is not None]
        if since and now - min(since) > grace:
            return
        time.sleep(_TICK)


def _kill(group: _Group) -> None:
    """End whatever still runs, also where this process itself fails."""
    for worker in group.running():
        worker.process.kill()
    for worker in group.workers:
        worker.process.wait()


def _status(group: _Group) -> int:
    """What the workers' statuses say together."""
    statuses = [worker.process.returncode for worker in group.workers]
    errors = [status for status in statuses if status > 0 and status != RESUMABLE]
    if errors:
        return errors[0]
    killed = [-status for status in statuses if status < 0]
    if any(number not in (signal.SIGKILL, *_SIGNALS) for number in killed):
        return 1  # a crash, which would come again
    if killed or RESUMABLE in statuses or (group.received is not None and any(statuses)) or not statuses:
        return RESUMABLE
    return 0


def _tell(group: _Group, status: int, logs: Path, say: Callable[[str], None]) -> None:
    """What worker 0's screen has not said: who was killed, and the last lines of another worker that failed."""
    for worker in group.workers:
        code = worker.process.returncode
        if code < 0 and group.received is None:
            cause = "; was it out of memory?" if -code == signal.SIGKILL else ""
            say(f"process {worker.rank} was ended by {signal.Signals(-code).name}{cause}")
    if status in (0, RESUMABLE):
        return
    first = next((worker for worker in group.workers if worker.process.returncode == status), None)
    if first is not None and first.log is not None:
        lines = first.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        for line in lines:
            say(line)
    if len(group.workers) > 1:
        say(f"the other processes' screens: {logs}")


def _forget(place: Path) -> None:
    for file in place.glob("rank-*.log"):
        file.unlink()
    place.rmdir()
