"""Workers that end, fail, hang and are killed: what the launcher says of them, and that none outlives it."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.machines import workers
from hybrid_ft.finetune.machines.workers import Nodes, launch


def program(code: str) -> list[str]:
    """``rank`` is the worker's; ``ready(text)`` says on its screen that it has come so far."""
    head = (
        "import os, signal, sys, time\nrank = int(os.environ['RANK'])\nready = lambda text: print(text, flush=True)\n"
    )
    return [sys.executable, "-c", head + textwrap.dedent(code)]


def started(code: str, processes: int, place: Path, *, grace: float = 60.0, restarts: int = 0) -> subprocess.Popen[str]:
    """A launcher in a process of its own, whose workers write what they say below ``place``."""
    call = f"launch({program(code)!r}, {processes}, grace={grace}, restarts={restarts}, logs=Path({str(place)!r}))"
    text = f"import sys\nfrom pathlib import Path\nfrom hybrid_ft.finetune.machines.workers import launch\nsys.exit({call})"
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(text: str, *logs: Path) -> None:
    end = time.monotonic() + 300
    while not all(log.exists() and text in log.read_text() for log in logs):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        ([0, 0, 0], 0),
        ([2, 75, 75], 2),
        ([75, 4, 75], 4),
        ([75, 75, 75], 75),
        ([0, 75, 0], 75),
        ([3, 5, 1], 3),
        ([0, 0, 1], 1),
    ],
)
def test_the_workers_statuses_are_the_commands(tmp_path, capfd, statuses, said):
    assert launch(program(f"sys.exit({statuses}[rank])"), len(statuses), logs=tmp_path / "logs") == said
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "status", "screen"),
    [
        ("SIGKILL", 75, "process 1 was ended by SIGKILL; was it out of memory?"),
        ("SIGABRT", 1, "process 1 was ended by SIGABRT"),
    ],
)
def test_a_worker_that_was_killed_is_named(tmp_path, number, status, screen):
    said: list[str] = []
    code = f"rank == 1 and os.kill(os.getpid(), signal.{number})"
    assert launch(program(code), 2, logs=tmp_path, say=said.append) == status
    assert said[0] == screen


@pytest.mark.slow
def test_workers_meet_in_the_launchers_store(tmp_path):
    code = """
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        total = torch.tensor([rank + 1.0])
        dist.all_reduce(total)
        ready(f"sum {total.item():g} of {dist.get_world_size()}")
        dist.destroy_process_group()
    """
    assert launch(program(code), 3, logs=tmp_path) == 0
    assert "sum 6 of 3" in (tmp_path / "rank-2.log").read_text()


def test_the_last_lines_of_another_worker_than_the_first_are_shown(tmp_path):
    said: list[str] = []
    code = "rank == 1 and (print('error: rows.jsonl:3: no'), sys.exit(2)); rank != 1 and sys.exit(75)"
    assert launch(program(code), 2, logs=tmp_path, say=said.append) == 2
    assert said == ["error: rows.jsonl:3: no", f"the other processes' screens: {tmp_path}"]


SAVES = """
    def stop(number, frame):
        ready("saving")
        time.sleep(1.5)
        ready("saved")
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    ready("running")
    time.sleep(600)
"""


def test_a_signal_is_passed_on_and_a_save_is_waited_for(tmp_path):
    run = started(SAVES, 3, tmp_path)
    assert run.stdout is not None and run.stdout.readline() == "running\n"
    wait_for("running", tmp_path / "rank-1.log", tmp_path / "rank-2.log")
    run.send_signal(signal.SIGTERM)
    assert run.wait(300) == 75
    out, err = run.communicate()
    assert out.splitlines() == ["saving", "saved"] and err == ""
    assert "saved" in (tmp_path / "rank-2.log").read_text()


def test_one_that_was_stopped_does_not_cut_short_what_the_others_save(tmp_path, monkeypatch):
    """A scheduler that signals every process: one ends at once, another saves for longer than the notice."""
    monkeypatch.setattr(workers, "_NOTICE", 0.2)
    code = """
        signal.signal(signal.SIGTERM, lambda *_: ready("cut short"))
        if rank == 1:
            time.sleep(2)
            ready("saved")
        sys.exit(75)
    """
    assert launch(program(code), 2, logs=tmp_path) == 75
    assert (tmp_path / "rank-1.log").read_text() == "saved\n"


def test_what_waits_for_a_worker_that_has_failed_is_asked_to_stop_and_then_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_NOTICE", 0.2)
    code = f"""
        log = {str(tmp_path / "rank-1.log")!r}
        if rank == 0:
            while "listens" not in open(log).read() if os.path.exists(log) else True:
                time.sleep(0.02)
            sys.exit(3)
        signal.signal(signal.SIGTERM, lambda *_: ready("asked"))
        ready("listens")
        time.sleep(600)
        time.sleep(600)
    """
    began = time.monotonic()
    assert launch(program(code), 2, logs=tmp_path, grace=2.0) == 3
    assert time.monotonic() - began < 300
    assert (tmp_path / "rank-1.log").read_text() == "listens\nasked\n"


@pytest.mark.slow
def test_a_second_signal_ends_the_workers_at_once(tmp_path, monkeypatch):
    code = SAVES.replace("time.sleep(1.5)", "signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(600)")
    run = started(code, 2, tmp_path)
    wait_for("running", tmp_path / "rank-1.log")
    run.send_signal(signal.SIGTERM)
    wait_for("saving", tmp_path / "rank-1.log")
    time.sleep(workers.ECHO + 0.2)
    run.send_signal(signal.SIGTERM)
    assert run.wait(120) == 75
    run.communicate()


def test_status_75_starts_again_as_often_as_was_asked(tmp_path):
    count = tmp_path / "count"
    code = f"open({str(count)!r}, 'a').write('x'); sys.exit(75 if len(open({str(count)!r}).read()) < 3 else 0)"
    assert launch(program(code), 1, restarts=4, logs=tmp_path / "logs") == 0
    assert count.read_text() == "xxx"
    count.unlink()
    assert launch(program(code.replace("< 3", "< 9")), 1, restarts=1, logs=tmp_path / "logs") == 75
    assert count.read_text() == "xx"


def test_a_stop_is_not_started_again(tmp_path):
    run = started(SAVES, 2, tmp_path, restarts=5)
    wait_for("running", tmp_path / "rank-1.log")
    run.send_signal(signal.SIGTERM)
    assert run.wait(300) == 75
    run.communicate()
    assert (tmp_path / "rank-1.log").read_text().count("running") == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the parent's death is Linux's to tell")
def test_no_worker_outlives_a_launcher_that_was_killed(tmp_path):
    code = """
        from hybrid_ft.finetune.runs.signals import resumable
        with resumable():
            ready(f"pid {os.getpid()}")
            time.sleep(600)
    """
    run = started(code, 2, tmp_path)
    wait_for("pid", tmp_path / "rank-1.log")
    pid = int((tmp_path / "rank-1.log").read_text().split()[1])
    run.kill()
    run.communicate()
    end = time.monotonic() + 300
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_two_machines_meet(tmp_path):
    """Two launchers on loopback; ranks are counted through."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    code = """
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        found = [None] * dist.get_world_size()
        dist.all_gather_object(found, (rank, int(os.environ["LOCAL_RANK"])))
        ready(str(found))
        dist.destroy_process_group()
    """
    statuses: dict[int, int] = {}

    def machine(number: int) -> None:
        call = f"launch({program(code)!r}, 2, nodes=Nodes(2, {number}, '127.0.0.1:{port}'), logs=Path({str(tmp_path / str(number))!r}))"
        text = f"import sys\nfrom pathlib import Path\nfrom hybrid_ft.finetune.machines.workers import Nodes, launch\nsys.exit({call})"
        env = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
        statuses[number] = subprocess.run([sys.executable, "-c", text], env=env, check=False, timeout=600).returncode

    threads = [threading.Thread(target=machine, args=(number,)) for number in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == {0: 0, 1: 0}
    assert (tmp_path / "1/rank-3.log").read_text().strip() == "[(0, 0), (1, 1), (2, 0), (3, 1)]"


@pytest.mark.parametrize(
    ("nodes", "restarts", "message"),
    [
        ((2, 2, "h:1"), 0, "--node-rank: 2 must be from 0 to 1"),
        ((1, 1, "h:1"), 0, "--node-rank: goes with --nodes, the number of machines"),
        ((1, 0, "h:1"), 0, "--rendezvous: goes with --nodes, the number of machines"),
        ((2, 0, None), 0, "--nodes: several machines need --rendezvous HOST:PORT"),
        ((2, 0, "host"), 0, "--rendezvous: 'host' must be HOST:PORT"),
        ((2, 0, "host:99999"), 0, "--rendezvous: 'host:99999' must be HOST:PORT"),
        ((2, 0, "127.0.0.1:1:2"), 0, "--rendezvous: '127.0.0.1:1:2' must be HOST:PORT"),
        ((2, 0, "nowhere.invalid:5"), 0, "--rendezvous: 'nowhere.invalid' must be a host that this machine knows ("),
        ((2, 0, "h:1"), 1, "--restarts: must be 0 with several machines"),
    ],
)
def test_machines_that_cannot_meet_are_refused(tmp_path, monkeypatch, nodes, restarts, message):
    monkeypatch.setattr(workers, "_KNOWN_BY", 0.2)
    with pytest.raises(InputError) as caught:
        launch(program(""), 1, nodes=Nodes(*nodes), restarts=restarts, logs=tmp_path)
    assert str(caught.value).startswith(message)


def test_an_address_of_ipv6_is_in_brackets():
    assert Nodes(2, 0, "[::1]:29500").address() == ("::1", 29500)


def test_a_port_that_is_taken_is_named(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=f"--rendezvous: cannot listen at {place}") as caught:
            launch(program(""), 1, nodes=Nodes(2, 0, place), logs=tmp_path)
    assert caught.value.status == 3
