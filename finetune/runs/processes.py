"""The processes that train one model together, and what they agree on.

A launcher (``accelerate launch``, ``torchrun``) starts them and says by environment variables who is who. What is
agreed on are numbers and short objects of the host, so it goes over gloo, whatever the gradients take.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.runs import device

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# To meet at all; one that has died before this cannot be noticed otherwise.
_MEETING = timedelta(minutes=5)
# One waits while another measures or exports a model. What hangs is the watchdog's to notice, not a time-out's.
PATIENCE = timedelta(hours=24)
_TRANSPORT = (
    "connection closed by peer",
    "connection reset",
    "broken pipe",
    "socket closed",
    "gloo",
    "nccl",
    "tcpstore",
)


def asked_for() -> int:
    """How many processes the launcher has started. Raises InputError where the environment says what cannot be."""
    return number_told("WORLD_SIZE", 1)


def number_told(name: str, least: int, most: int | None = None) -> int:
    """What a launcher's variable says, ``least`` where it is not set. Raises InputError, status 3,
    for no such number."""
    said = os.environ.get(name, str(least))
    number = int(said) if said.isascii() and said.isdecimal() else -1
    if number < least or (most is not None and number > most):
        rule = f"{least} to {most}" if most is not None else f"a whole number from {least}"
        raise InputError(
            f"{name} is {said!r} in the environment and must be {rule}; start several processes by accelerate launch or "
            "torchrun, or unset it",
            ENVIRONMENT,
        )
    return number


def be_patient(group: Any) -> None:
    """Let a group wait as long as process 0 may write; the watchdog, and not a timeout, ends a run that hangs."""
    dist.distributed_c10d._set_pg_timeout(PATIENCE, group)


@dataclass
class Processes:
    """``count`` processes; this one is number ``rank``. Number 0, ``main``, is the one that writes and speaks."""

    count: int = 1
    rank: int = 0
    group: Any = None

    @classmethod
    def join(cls) -> Processes:
        """Meet the others that the launcher has started. Raises InputError where it does not say how."""
        count = asked_for()
        if count == 1:
            return cls()
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise InputError(
                f"WORLD_SIZE is {count} and {missing[0]} is not set; start several processes by accelerate launch or torchrun",
                ENVIRONMENT,
            )
        number_told("RANK", 0, count - 1)
        number_told("MASTER_PORT", 1, 65535)
        if os.environ["MASTER_ADDR"] in _LOOPBACK and os.path.isdir("/sys/class/net/lo"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        gpu = device.is_gpu()
        if gpu:
            torch.cuda.set_device(number_told("LOCAL_RANK", 0, device.count() - 1))

        def meet() -> Any:
            if not dist.is_initialized():
                dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=_MEETING)
            group = dist.new_group(backend="gloo", timeout=_MEETING)
            for one in (None, group):
                be_patient(one)
            return group

        group = _hearing_signals(meet)
        return cls(count, dist.get_rank(), group)

    def part(self) -> None:
        """Say good-bye: after this every process is on its own."""
        if self.count > 1:
            self.wait()
            self.count, self.group = 1, None
            dist.destroy_process_group()

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            _hearing_signals(lambda: dist.barrier(self.group))

    def any(self, flag: bool) -> bool:
        """Whether it holds in at least one process."""
        return flag if self.count == 1 else self.sum([int(flag)])[0] > 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Over all processes, each value by itself."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def of_main(self, value: Any) -> Any:
        """What number 0 has, in every process."""
        if self.count == 1:
            return value
        held = [value]
        _hearing_signals(lambda: dist.broadcast_object_list(held, src=0, group=self.group))
        return held[0]

    def least(self, value: frozenset[int]) -> frozenset[int]:
        """What is in the set of every process."""
        return frozenset.intersection(*self.gather(value))

    def gather(self, value: Any) -> list[Any]:
        """What each process has, by number, in every process."""
        if self.count == 1:
            return [value]
        held: list[Any] = [None] * self.count
        _hearing_signals(lambda: dist.all_gather_object(held, value, group=self.group))
        return held


def _hearing_signals(work: Callable[[], Any]) -> Any:
    """The result of ``work``, which may wait for another process for long: in a thread of its own, because a signal's
    handler in Python runs in the main thread alone, and not while that one waits in C."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result()


def leave(status: int) -> NoReturn:
    """End this process now. A thread of it may still wait for one that is gone, and the interpreter
    would wait with it."""
    gc.collect()  # with the objects go their temporary folders
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def other_is_gone(error: BaseException) -> bool:
    """Whether an error says that another process has ended while this one waited for it."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _TRANSPORT)
    )


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that lies in pieces with all processes, put together; each of them must ask for it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
