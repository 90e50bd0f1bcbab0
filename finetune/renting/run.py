"""``hybrid-ft rent``: writes the file that starts a recipe elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from hybrid_ft.errors import ENVIRONMENT, InputError, holds_secret
from hybrid_ft.finetune.machines.gpus import read_table
from hybrid_ft.finetune.renting import hf, sky, slurm
from hybrid_ft.finetune.renting.job import Job, make_job, words
from hybrid_ft.finetune.renting.order import PLACES, Order
from hybrid_ft.finetune.runs.team import check_teams

_PROGRAMS = {
    "sky": ("sky", "uv tool install skypilot puts it into an environment of its own"),
    "slurm": ("sbatch", "--on slurm is for a machine of the cluster"),
}
"""What starts a file, and what to do where it is missing."""
_SUFFIX = {"sky": ".sky.yaml", "hf": ".hf.yaml", "slurm": ".sbatch"}


def run(file: str, overrides: Sequence[str], order: Order, start: bool, say: Callable[[str], None]) -> int:
    """Write the file for ``file``'s recipe and, where ``start`` says so, start it. Returns the exit status.

    Nothing is written where something is refused, and a file that is there with another text is left alone.
    """
    job = make_job(file, overrides, order)
    for recipe in job.recipes:
        check_teams(order.gpus * (order.nodes or 1), recipe.train.sequence_parallel)
    text = _text(job)
    if holds_secret(text):
        raise InputError(f"{file}: the file would hold a secret; name the variable that has it: --secret HF_TOKEN")
    if start and order.place in _PROGRAMS:
        _check_program(*_PROGRAMS[order.place])
    target = order.write or Path(f"{job.name}{_SUFFIX[order.place]}")
    checked = order.place == "sky" and sky.check(text, _folder(target))
    _write(target, text)
    _tell(job, target, checked, start, say)
    if not start:
        return 0
    if order.place == "sky":
        return sky.start(job, target)
    return hf.start(text, say) if order.place == "hf" else slurm.start(target)


def _check_program(program: str, otherwise: str) -> None:
    if shutil.which(program) is None:
        raise InputError(f"--start: {program} is not installed here; {otherwise}", ENVIRONMENT)


def _text(job: Job) -> str:
    place = job.order.place
    head = f"# hybrid-ft rent: {job.name}, {PLACES[place]}\n"
    if place == "slurm":
        first, rest = slurm.script(job).split("\n", 1)
        return f"{first}\n{head}{rest}"
    return head + (sky.task(job) if place == "sky" else hf.specification(job))


def _folder(target: Path) -> Path:
    if not target.parent.is_dir():
        raise InputError(f"--write: {target.parent} is not a folder; make it, or name a file in another")
    return target.parent


def _write(target: Path, text: str) -> None:
    folder = _folder(target)
    new = folder / f".{target.name}.{os.getpid()}"
    try:
        if target.exists():
            if target.read_text(encoding="utf-8", errors="replace") == text:
                return
            raise InputError(f"{target}: is there with another text; remove it, or name another file with --write")
        new.write_text(text, encoding="utf-8")
        os.replace(new, target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); name another file with --write") from None
    finally:
        new.unlink(missing_ok=True)


def _tell(job: Job, target: Path, checked: bool, start: bool, say: Callable[[str], None]) -> None:
    order = job.order
    gpu = read_table()[order.gpu.lower()].name if order.gpu else "GPU"
    machines = f"{order.nodes} machines with " if order.nodes and order.nodes > 1 else ""
    say(f"{target}: {PLACES[order.place]}, {machines}{order.gpus} x {gpu}{', spot' if order.spot else ''}")
    if order.place != "slurm":
        bucket = order.bucket and f"{order.bucket.rstrip('/')}/{job.name}"
        mirror = job.kept if order.place == "hf" else bucket
        say(f"the run will be on the machine's own disk and its mirror at {mirror or order.mirror}")
    if order.place == "sky":
        said = "SkyPilot takes it" if checked else "not checked: SkyPilot is not installed here"
        size = sum(map(_bytes, {here for item in job.brought for here in item.files.values()}))
        say(f"{said}; {size / 1e6:,.1f} MB of this machine's files will be uploaded" if size else said)
    if start:
        return
    by = {"sky": lambda: sky.command(job, target), "slurm": lambda: slurm.command(target)}.get(order.place)
    how = words(by()) if by else "the same command with --start"
    say(f"nothing was started; {how} starts it")


def _bytes(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)
