"""A process that hangs is ended, one that is slow or was suspended is not; each in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

SETUP = """
import ctypes, faulthandler, multiprocessing, os, sys, threading, time
from pathlib import Path
from hybrid_ft.finetune.runs import watchdog
from hybrid_ft.finetune.runs.watchdog import Watchdog

watchdog.TICK, watchdog.FIRST, watchdog.PATIENCE, watchdog.GRACE = 0.05, 2.0, 0.8, 30.0
dog = Watchdog()

def go():
    print(time.monotonic(), flush=True)

def beating(seconds, every=0.2):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        dog.beat()
        time.sleep(every)

with dog.watching(Path(sys.argv[1]), 3):
"""


@dataclass
class Ended:
    status: int
    stderr: str
    seconds: float


@pytest.fixture
def begin(tmp_path):
    processes = []

    def go(body: str, after: str = ""):
        text = SETUP + "".join(f"    {line}\n" for line in body.strip().splitlines()) + after
        process = subprocess.Popen(
            [sys.executable, "-c", text, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process

    yield go
    for process in processes:
        process.kill()
        process.communicate()


def end(process) -> Ended:
    began = float(process.stdout.readline())  # importing took as long as it took; one clock for all processes
    _, stderr = process.communicate(timeout=90)
    return Ended(process.returncode, stderr, time.monotonic() - began)


def test_a_hang_is_ended_with_the_stacks_of_all_threads(begin, tmp_path):
    body = """
def another_thread():
    time.sleep(100)
threading.Thread(target=another_thread, daemon=True).start()
dog.beat()
go()
time.sleep(100)
"""
    ended = end(begin(body))
    assert ended.status == 75
    assert 0.6 < ended.seconds < 60
    lines = ended.stderr.splitlines()
    assert lines[-1] == (
        "error: no progress for 0.8 s (process 3): ended, with what every thread was doing above and in "
        f"{tmp_path / 'hang-3.txt'}; the same command goes on from the last save"
    )
    for stacks in (ended.stderr, (tmp_path / "hang-3.txt").read_text()):
        assert "in another_thread" in stacks
        assert "in <module>" in stacks


def test_a_folder_that_cannot_be_written_does_not_keep_it_alive(begin, tmp_path):
    (tmp_path / "hang-3.txt").mkdir()
    ended = end(begin("dog.beat()\ngo()\ntime.sleep(100)"))
    assert ended.status == 75


def test_a_hang_that_never_lets_go_of_the_interpreter_is_ended_too(begin):
    ended = end(begin("dog.beat()\nwatchdog.GRACE = 0.8\ntime.sleep(0.3)\ngo()\nctypes.PyDLL(None).sleep(100)"))
    assert ended.status == 1
    assert "Timeout (0:00:01.600000)!" in ended.stderr
    assert ended.seconds < 60


def test_before_the_first_beat_there_is_more_time(begin):
    ended = end(begin("go()\ntime.sleep(1.4)\nbeating(0.3)\nsys.exit(9)"))
    assert ended.status == 9
    ended = end(begin("go()\ntime.sleep(100)"))
    assert ended.status == 75
    assert "no progress for 2 s" in ended.stderr


def test_slow_but_alive(begin):
    # intervals grow; each is longer than the last but no ten times
    ended = end(begin("go()\nbeating(1, 0.3)\ntime.sleep(1.6)\nbeating(0.3)\nsys.exit(9)"))
    assert ended.status == 9, ended.stderr


@pytest.mark.slow
def test_a_pause_is_not_held_against_it_and_does_not_make_it_more_patient(begin):
    ended = end(begin("dog.beat()\ngo()\nwith dog.paused():\n    time.sleep(2)\nbeating(0.3)\nsys.exit(9)"))
    assert ended.status == 9, ended.stderr
    ended = end(begin("dog.beat()\ngo()\nwith dog.paused():\n    time.sleep(1.5)\ntime.sleep(100)"))
    assert ended.status == 75
    assert "no progress for 0.8 s" in ended.stderr
    ended = end(begin("dog.beat()\ngo()\nwith dog.paused():\n    time.sleep(1.5)\ndog.beat()\ntime.sleep(100)"))
    assert ended.status == 75 and "no progress for 0.8 s" in ended.stderr
    # the backstop rests as well
    ended = end(begin("dog.beat()\ngo()\nwith dog.paused():\n    ctypes.PyDLL(None).sleep(3)\nsys.exit(9)"))
    assert ended.status == 9, ended.stderr


def test_a_suspended_process_is_not_taken_for_hung(begin):
    process = begin("go()\nbeating(0.5)\nprint('now', flush=True)\nbeating(1)\nsys.exit(9)")
    process.stdout.readline()
    process.stdout.readline()
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.2)  # longer than PATIENCE
    os.kill(process.pid, signal.SIGCONT)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 9, stderr


def test_nothing_remains_armed_afterwards(begin):
    after = """
dog.beat()
with dog.paused():
    pass
assert threading.active_count() == 1
time.sleep(2)
sys.exit(9)
"""
    ended = end(begin("dog.beat()\ngo()", after))
    assert ended.status == 9, ended.stderr


def test_a_second_watch_begins_anew(begin):
    after = """
    time.sleep(0)
with dog.watching(Path(sys.argv[1])):
    time.sleep(1.4)
    dog.beat()
    time.sleep(100)
"""
    ended = end(begin("dog.beat()\ngo()", after))
    assert ended.status == 75
    assert "(process 0)" in ended.stderr


def test_a_forked_child_does_not_carry_it(begin):
    body = """
beating(0.5)
child = os.fork()
if not child:
    dog.beat()
    with dog.paused():
        time.sleep(2)
    sys.exit(7)
go()
ends = time.monotonic() + 15
while time.monotonic() < ends:
    dog.beat()
    time.sleep(0.1)
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
else:
    sys.exit(1)
assert os.waitstatus_to_exitcode(status) == 7, status
time.sleep(100)
"""
    # the parent is still watched after the fork
    ended = end(begin(body))
    assert ended.status == 75, ended.stderr
    assert "AssertionError" not in ended.stderr
