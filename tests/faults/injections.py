"""What goes wrong inside the program, arranged in a forked child before its first line runs.

Steps are told by torch's own hooks around every optimizer's step; they are counted from 1 in each process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from trl import DPOTrainer, SFTTrainer

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR


def log_steps(file: str) -> None:
    """A line for each step taken: when it ended, by the clock that all processes of a machine share."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    register_optimizer_step_post_hook(lambda *_: os.write(handle, f"{time.monotonic()}\n".encode()))


def signal_in_step(step: int, number: int) -> None:
    _in_step(step, lambda: os.kill(os.getpid(), number))


def stall_in_step(step: int, seconds: float, mark: str) -> None:
    """``mark`` is a file that is there as soon as the step stands still."""

    def stall() -> None:
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT))
        time.sleep(seconds)

    _in_step(step, stall)


def fill_disk_in_step(step: int, left: int, ballast: str) -> None:
    """Leave ``left`` bytes on the file system of ``ballast``, a new file that takes the rest."""

    def fill() -> None:
        handle = os.open(ballast, os.O_WRONLY | os.O_CREAT)
        room = os.statvfs(ballast)
        os.posix_fallocate(handle, 0, max(1, room.f_bavail * room.f_frsize - left))
        os.close(handle)

    _in_step(step, fill)


def patience(seconds: float) -> None:
    """After so long without progress a process is taken for hung."""
    from hybrid_ft.finetune.runs import watchdog

    watchdog.FIRST = watchdog.PATIENCE = seconds
    watchdog.SLOWER = 1


def log_operations(file: str) -> None:
    """A line for each operation that changes a file system: its kind and its path."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _before_each_operation(lambda kind, path: os.write(handle, f"{kind} {path}\n".encode()))


def die_at_operation(number: int) -> None:
    """SIGKILL just before the operation in line ``number``, from 0, of such a log."""
    left = [number]

    def count(kind: str, path: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    _before_each_operation(count)


def signal_at_operation(number: int, whom: str, signal_number: int) -> None:
    """A signal just before the operation in line ``number``, from 0, of such a log: to "self", to the "launcher" that
    has started this worker, or to the "other" one, which waits meanwhile for what this one writes."""
    left = [number]

    def count(kind: str, path: str) -> None:
        left[0] -= 1
        if left[0] == -1:
            os.kill(_process(whom), signal_number)

    _before_each_operation(count)


def _process(whom: str) -> int:
    import psutil

    if whom == "self":
        return os.getpid()
    launcher = psutil.Process(os.getppid())
    return launcher.pid if whom == "launcher" else next(p.pid for p in launcher.children() if p.pid != os.getpid())


def not_finite(what: str, step: int, value: str, place: int) -> None:
    """In ``step`` the loss, or one number of a gradient, becomes ``value``; or one of a weight, just after the step.

    ``place`` chooses the tensor.
    """
    wrong, taken = float(value), [0]
    register_optimizer_step_post_hook(lambda *_: taken.__setitem__(0, taken[0] + 1))
    if what == "loss":
        for trainer in (SFTTrainer, DPOTrainer):
            _poison_loss(trainer, lambda: taken[0] + 1 == step, wrong)
    elif what == "gradient":
        _poison_gradient(lambda: taken[0] + 1 == step, wrong, place)
    else:
        register_optimizer_step_post_hook(
            lambda optimizer, *_: _poison_one(optimizer, wrong, place) if taken[0] == step else None
        )


def _in_step(step: int, act: Callable[[], object]) -> None:
    begun = [0]

    def hook(*_: Any) -> None:
        begun[0] += 1
        if begun[0] == step:
            act()

    register_optimizer_step_pre_hook(hook)


def _before_each_operation(act: Callable[[str, str], None]) -> None:
    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and arguments[2] & WRITING):
            act(event, str(arguments[0]))

    def counted(sync: Callable[[int], None]) -> Callable[[int], None]:
        def call(handle: int) -> None:
            act("sync", os.readlink(f"/proc/self/fd/{handle}"))
            sync(handle)

        return call

    sys.addaudithook(audit)  # it hears of everything but syncs
    os.fsync, os.fdatasync = counted(os.fsync), counted(os.fdatasync)


def _poison_loss(trainer: type, now: Callable[[], bool], wrong: float) -> None:
    compute_loss = trainer.compute_loss

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(self, *args, **kwargs)
        # what is measured before the first step draws no gradient
        return loss * wrong if now() and torch.is_grad_enabled() and torch.is_tensor(loss) else loss

    trainer.compute_loss = poisoned


def _poison_gradient(now: Callable[[], bool], wrong: float, place: int) -> None:
    backward = torch.Tensor.backward

    def poisoned(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        leaves = _leaves(self) if now() else []
        backward(self, *args, **kwargs)
        if leaves:
            grad = leaves[place % len(leaves)].grad
            assert grad is not None
            grad.view(-1)[0] = wrong

    torch.Tensor.backward = poisoned


def _leaves(loss: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a backward pass gives a gradient, in an order that is the same every time."""
    found, seen, waiting = [], set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [after for after, _ in node.next_functions]
    return found


@torch.no_grad()
def _poison_one(optimizer: torch.optim.Optimizer, wrong: float, place: int) -> None:
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    weights[place % len(weights)].view(-1)[0] = wrong


def short_waits(seconds: float) -> None:
    """A run waits no longer for its mirror."""
    from hybrid_ft.finetune.mirror import mirror

    mirror.STOP_SECONDS = mirror.END_SECONDS = mirror.IDLE_SECONDS = seconds


def local_hub(folder: str) -> None:
    """huggingface_hub's API on a folder: contents first, one by one and each once, then a commit
    that names them all."""
    import hashlib
    import json
    from pathlib import Path
    from types import SimpleNamespace

    import huggingface_hub

    place = Path(folder)

    def upload(*, repo_id: str, folder_path: str, commit_message: str) -> None:
        names = {}
        for path in sorted(Path(folder_path).iterdir()):
            content = path.read_bytes()
            names[path.name] = hashlib.sha256(content).hexdigest()
            kept = place / names[path.name]
            if not kept.exists():
                kept.with_suffix(".part").write_bytes(content)
                kept.with_suffix(".part").rename(kept)
        (place / "commit.part").write_text(json.dumps(names))
        (place / "commit.part").rename(place / "commit.json")

    hub = SimpleNamespace(
        create_repo=lambda name, **_: SimpleNamespace(repo_id=name),
        repo_info=lambda name: SimpleNamespace(private=True),
        upload_folder=upload,
    )
    huggingface_hub.HfApi = lambda: hub


def fork_workers(inject: dict[str, dict[str, dict[str, Any]]]) -> None:
    """What ``hybrid-ft launch`` starts begins with everything imported; all else of a process's start is as it is.

    ``inject``: by rank, what goes wrong in a worker, as functions of this file and their arguments.
    """
    from hybrid_ft.finetune.machines import workers

    def spawn(command: Any, common: dict[str, str], rank: int, local: int, screen: Any) -> _Forked:
        return _forked(command, common, rank, local, screen, inject.get(str(rank), {}))

    workers._spawn = spawn  # type: ignore[assignment]


class _Forked:
    """As much of subprocess.Popen as the launcher asks for."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        return self.wait(os.WNOHANG)

    def wait(self, how: int = 0) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _forked(
    command: Any, common: dict[str, str], rank: int, local: int, screen: Any, inject: dict[str, dict[str, Any]]
) -> _Forked:
    if pid := os.fork():
        return _Forked(pid)
    from hybrid_ft import cli

    status: Any = 1
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if screen:
            for end in (1, 2):
                os.dup2(screen.fileno(), end)
        # the launcher's own ends, and its store's
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ |= common | {"RANK": str(rank), "LOCAL_RANK": str(local)}
        sys.argv = ["hybrid-ft", *command[3:]]
        for name, options in inject.items():
            globals()[name](**options)
        status = cli.main()
    except SystemExit as error:
        status = error.code
    except BaseException:  # noqa: BLE001 - as the interpreter does at the end of a program
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
