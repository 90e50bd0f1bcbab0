"""A run whose screen is lost is told so once and goes on to its end; in a process of its own, on real descriptors."""

import os
import subprocess
import sys

import pytest

# more than a pipe's 64 KiB and Python's own buffer together, so that a write fails before the end
LINES = [f"line {number:060}" for number in range(1_200)]
BODY = """
import sys
from hybrid_ft.finetune.runs.console import screen

console = screen()
for number in range(1_200):
    console.print(f"line {number:060}")
sys.exit(9)
"""


def read_little(end: int) -> None:
    os.read(end, 10)
    os.close(end)


@pytest.mark.parametrize("lost", ["a pipe", "a full disk"])
def test_a_lost_screen_ends_nothing(lost):
    ours, theirs = os.pipe() if lost == "a pipe" else (None, os.open("/dev/full", os.O_WRONLY))
    process = subprocess.Popen([sys.executable, "-c", BODY], stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    if ours is not None:
        read_little(ours)
    _, told = process.communicate(timeout=60)
    reason = "Broken pipe" if lost == "a pipe" else "No space left on device"
    assert told == (
        f"warning: nothing more can be shown here ({reason}); the run goes on, its figures are in metrics.jsonl\n"
    )
    assert process.returncode == 9


def test_what_can_be_shown_is_shown_whole():
    done = subprocess.run([sys.executable, "-c", BODY], check=False, capture_output=True, text=True)
    assert done.stdout.splitlines() == LINES
    assert done.stderr == "" and done.returncode == 9


@pytest.mark.parametrize("shut", [1, 2])
def test_a_descriptor_that_was_closed_before_the_start(shut):
    start = f"import os, sys\nos.close({shut})\nos.execv(sys.executable, [sys.executable, '-c', {BODY!r}])"
    assert subprocess.run([sys.executable, "-c", start], check=False, capture_output=True).returncode == 9
