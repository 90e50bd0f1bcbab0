"""Stages on several machines: number 0 leads, the others follow.

Machine 0 alone knows what is done and what is next. It tells the others by a store at the address where they
meet, which it holds for as long as the file takes; the workers of each stage meet in a store of their own, at a
port that is free.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

from hybrid_ft.errors import ENVIRONMENT, RESUMABLE, InputError
from hybrid_ft.finetune.machines.workers import Nodes, store_at

_TICK = 0.2
_ARRIVAL = 300.0
"""seconds that machine 0 may come later than another"""
_FAREWELL = 10.0
"""seconds in which the others read how it ended"""
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Leader:
    """Machine 0: ``announce`` tells the others of a stage, ``end`` how the file ended."""

    def __init__(self, nodes: Nodes) -> None:
        self.host, port = nodes.address()
        self._others = nodes.count - 1
        self._store, self._told = store_at(self.host, port), 0

    def announce(self, kind: str, recipe: str, grace: float, port: int) -> None:
        """A stage's recipe as YAML, and the port at which its workers meet."""
        self._tell({"kind": kind, "recipe": recipe, "grace": grace, "port": port})

    def end(self, status: int) -> None:
        """Wait a little until the others have read it: the store goes with this process."""
        self._tell({"status": status})
        until = time.monotonic() + _FAREWELL
        while self._store.add("ended", 0) < self._others and time.monotonic() < until:
            time.sleep(_TICK)

    def _tell(self, what: dict[str, Any]) -> None:
        self._store.set(f"told-{self._told}", json.dumps(what))
        self._told += 1


def follow(nodes: Nodes, stage: Callable[[str, str, float, Nodes], int]) -> int:
    """Another machine: start its workers of each stage until machine 0 says the end. Returns the exit status.

    ``stage(kind, recipe, grace, nodes)`` starts them and returns their status; one that is not 0 is the end here too.
    """
    host, port = nodes.address()
    with _heard() as stopped:
        store = _reached(host, port, stopped)
        number = 0
        while store is not None and not stopped:
            told = _asked(store, f"told-{number}", stopped)
            if told is None:
                break
            if "status" in told:
                store.add("ended", 1)
                return int(told["status"])
            status = stage(
                told["kind"], told["recipe"], told["grace"], Nodes(nodes.count, nodes.rank, f"{host}:{told['port']}")
            )
            if status:
                return status
            number += 1
    return RESUMABLE


def _reached(host: str, port: int, stopped: list[int]) -> Any:
    """The store of machine 0, or None after a signal. Raises InputError where it does not come."""
    from torch.distributed import DistError, TCPStore

    until = time.monotonic() + _ARRIVAL
    while not stopped:
        try:
            return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=2))
        except (DistError, RuntimeError):
            if time.monotonic() > until:
                raise InputError(
                    f"--rendezvous: machine 0 does not answer at {host}:{port}; start it there, or name its address",
                    ENVIRONMENT,
                ) from None
    return None


def _asked(store: Any, key: str, stopped: list[int]) -> dict[str, Any] | None:
    """What machine 0 has told, waited for; None after a signal, or where machine 0 is gone."""
    from torch.distributed import DistError

    try:
        while not store.check([key]):
            if stopped:
                return None
            time.sleep(_TICK)
        found: dict[str, Any] = json.loads(store.get(key))
    except (DistError, RuntimeError):
        return None
    return found


@contextmanager
def _heard() -> Iterator[list[int]]:
    """The signals that came while nothing ran here; the workers' own launch hears them while it lasts."""
    stopped: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    before = {number: signal.signal(number, hear) for number in _STOPS if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield stopped
    finally:
        for number, was in before.items():
            signal.signal(number, was)
