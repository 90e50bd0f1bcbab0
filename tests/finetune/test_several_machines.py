"""Stages on several machines: the others do what machine 0 says, and end as it or their own part ends."""

import os
import signal
import socket
import threading
import time
from contextlib import nullcontext
from typing import Any

import pytest

from hybrid_ft.errors import RESUMABLE
from hybrid_ft.finetune import several_machines
from hybrid_ft.finetune.machines.workers import Nodes


@pytest.fixture
def meet() -> str:
    """An address to meet at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def leader(meet: str) -> several_machines.Leader:
    """Machine 0, which has told of a stage."""
    leader = several_machines.Leader(Nodes(2, 0, meet))
    leader.announce("sft", "a: 1", 5.0, 7)
    return leader


def test_how_the_first_machine_ends_is_how_all_end(leader: Any, meet: str) -> None:
    """What it refuses before a stage is no success elsewhere."""
    seen = []

    def stage(*given: object) -> int:
        seen.append(given)
        threading.Thread(target=leader.end, args=(3,)).start()
        return 0

    assert several_machines.follow(Nodes(2, 1, meet), stage) == 3
    assert seen == [("sft", "a: 1", 5.0, Nodes(2, 1, "127.0.0.1:7"))]


def test_where_its_own_part_of_a_stage_fails_a_machine_ends(leader: Any, meet: str) -> None:
    assert several_machines.follow(Nodes(2, 1, meet), lambda *given: 4) == 4


@pytest.mark.parametrize("of_its_own", [False, True], ids=["machine 0 is gone", "a signal"])
def test_what_cannot_go_on_between_stages_is_resumable(leader: Any, meet: str, of_its_own: bool) -> None:
    """And the signals are handled as before."""
    before = signal.getsignal(signal.SIGTERM)

    def stage(*given: object) -> int:
        if of_its_own:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            leader._store = None  # its process holds the store, and is the one that ends
        return 0

    assert several_machines.follow(Nodes(2, 1, meet), stage) == RESUMABLE
    assert signal.getsignal(signal.SIGTERM) is before


def test_machine_0_waits_for_those_that_have_not_read_how_it_ended(leader: Any, meet: str, monkeypatch: Any) -> None:
    """The store goes with it. It does not wait forever for one that is gone."""
    monkeypatch.setattr(several_machines, "_FAREWELL", 0.5)
    began = time.monotonic()
    leader.end(0)
    assert 0.5 <= time.monotonic() - began < 5
    monkeypatch.setattr(several_machines, "_FAREWELL", 60)
    other = threading.Thread(target=several_machines.follow, args=(Nodes(2, 1, meet), lambda *given: 0))
    monkeypatch.setattr(several_machines, "_heard", lambda: nullcontext([]))  # a thread hears no signals
    other.start()
    leader.end(0)
    other.join()
    assert time.monotonic() - began < 30
