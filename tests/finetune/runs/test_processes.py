"""What several processes agree on, as far as one process can show it; runs of two are in tests/faults/test_ranks.py."""

import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data import BatchSampler

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs.processes import Processes, _hearing_signals, other_is_gone
from hybrid_ft.finetune.training.sampler import ShardedBatchSampler


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 12])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shares_are_all_batches_once_in_the_order_of_one_process(rows, count):
    batches = BatchSampler(range(rows), batch_size=2, drop_last=False)
    shares = [list(ShardedBatchSampler(batches, count, rank, [99], a_step=count)) for rank in range(count)]
    assert {len(share) for share in shares} == {len(ShardedBatchSampler(batches, count, 0, [99], a_step=count))}
    together = [batch for turn in zip(*shares, strict=True) for batch in turn]
    real = [batch for batch in together if batch != [99]]
    assert real == list(batches)
    assert together == real + [[99]] * (len(together) - len(real)) and len(together) - len(real) < count


def test_one_process_agrees_with_itself():
    alone = Processes()
    assert alone.main and alone.any(True) and not alone.any(False)
    assert alone.sum([1, 2.5]) == [1, 2.5] and alone.of_main("x") == "x" and alone.gather(3) == [3]
    alone.wait()
    alone.part()


def test_a_launcher_that_says_half_of_it_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="WORLD_SIZE is 2 and RANK is not set; start several processes by") as caught:
        Processes.join()
    assert caught.value.status == 3


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("WORLD_SIZE", "abc", "a whole number from 1"),
        ("WORLD_SIZE", "0", "a whole number from 1"),
        ("WORLD_SIZE", "", "a whole number from 1"),
        ("WORLD_SIZE", "\u00b2", "a whole number from 1"),
        ("RANK", "2", "0 to 1"),
        ("RANK", "-1", "0 to 1"),
        ("MASTER_PORT", "0", "1 to 65535"),
        ("MASTER_PORT", "http", "1 to 65535"),
    ],
)
def test_a_launcher_that_says_what_cannot_be_is_told(monkeypatch, name, value, rule):
    said = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", name: value}
    for key, number in said.items():
        monkeypatch.setenv(key, number)
    with pytest.raises(InputError, match=f"^{name} is .* in the environment and must be {rule}; start") as caught:
        Processes.join()
    assert caught.value.status == 3


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:10115"), True),
        (torch.distributed.DistBackendError("NCCL error"), True),
        (torch.distributed.DistNetworkError("failed to recv"), True),
        (RuntimeError("shape mismatch"), False),
        (KeyError("connection closed by peer"), False),
        (InputError("data/x.jsonl: connection reset is no row"), False),
    ],
)
def test_an_error_that_means_a_lost_process_is_told_from_others(error, gone):
    assert other_is_gone(error) is gone


def test_a_signal_is_heard_while_another_process_is_waited_for():
    """In a wait that holds no Python code; without the thread the handler would run after it."""
    code = """if True:
        import os, signal, sys, threading, time
        from hybrid_ft.finetune.runs.processes import _hearing_signals
        signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        import ctypes
        # ctypes lets go of the interpreter lock and, unlike time.sleep, comes back to no Python code when a signal arrives
        end = time.monotonic() + 600
        def wait():
            while time.monotonic() < end:
                ctypes.CDLL(None).poll(None, 0, 600000)
        _hearing_signals(wait)
    """
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=550).returncode == 75
    assert time.monotonic() - began < 500


def test_what_is_waited_for_comes_back_with_its_error():
    assert _hearing_signals(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        _hearing_signals(lambda: 1 / 0)
