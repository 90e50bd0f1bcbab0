"""Collectives give known sums; what hangs is ended."""

import sys
from typing import Any

import pytest

from hybrid_ft.finetune.doctor import collectives


@pytest.mark.slow
def test_collectives_give_known_sums() -> None:
    found = collectives.check(0, 600.0)
    assert not found.red and "2 processes, gloo: the known sums" in found.said


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import time; time.sleep(600)", "no answer in 1 s from 0, 1"),
        ("import sys; sys.exit(7)", "another sum"),
        ("import sys, time; sys.argv[1] == '1' and sys.exit(9); time.sleep(600)", "process 1 failed with status 9"),
    ],
)
def test_what_hangs_or_fails_is_ended(code: str, said: str) -> None:
    wrong = collectives.run_workers([sys.executable, "-c", code], 2, 1.0 if "no answer" in said else 300.0)
    assert wrong is not None and said in wrong


def test_again_without_p2p(monkeypatch: pytest.MonkeyPatch) -> None:
    def workers(command: Any, count: int, seconds: float, more: Any = None) -> str | None:
        return None if more == {"NCCL_P2P_DISABLE": "1"} else "no answer in 60 s from 0, 1"

    monkeypatch.setattr(collectives, "run_workers", workers)
    found = collectives.check(2)
    assert found.red and "set NCCL_P2P_DISABLE=1" in found.said
