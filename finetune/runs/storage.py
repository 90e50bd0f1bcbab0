"""Disk checks: a trial write, and a clear error if a save fails."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_ft.errors import STORAGE, InputError
from hybrid_ft.finetune.runs.console import duration
from hybrid_ft.finetune.runs.moments import moment_bytes

if TYPE_CHECKING:
    import torch

PROBE_BYTES = 64 * 2**20

_BLOCK = bytes(range(256)) * 4096
_STATE_BYTES = 24_000
"""of random states, schedule, trainer state and manifest"""
_NAME_BYTES = 350
"""of a trained tensor's names in the headers of the weights and of both moments"""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FAILURES = _FULL | {errno.EFBIG, errno.EIO, errno.EROFS}
_MENDED_BY = {
    errno.EFBIG: "Raise the limit on a file's size (ulimit -f)",
    errno.EIO: "Fix or replace the disk",
    errno.EROFS: "Make it writable",
}
# torch's writer says only where its file ends, never why
_TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container.*unexpected pos")
# Rust's errors ("os error 28") and Arrow's ("[errno 28]") carry the number in their text alone
_NUMBER_IN_TEXT = re.compile(r"(?:os error |\[errno )(\d+)", re.IGNORECASE)


def probe(folder: Path, expected: int | None = None) -> float:
    """Write, sync, rename and read back a file of up to 64 MiB in an existing folder.

    ``expected``: bytes that will be written there at a time; a file of that size shows what they cost, and no
    larger one is needed. Returns the bytes per second of write, sync and digest together. Raises InputError naming
    the operation that failed.
    """
    file, renamed = (folder / f".probe-{os.getpid()}{end}" for end in ("", "-renamed"))
    doing = "look"
    try:
        size = min(PROBE_BYTES, shutil.disk_usage(folder).free // 4, PROBE_BYTES if expected is None else expected)
        blocks = max(size // len(_BLOCK), 1)
        began = time.perf_counter()
        doing = "write"
        written = hashlib.sha256()
        with open(file, "wb") as out:
            out.writelines(_BLOCK for _ in range(blocks))
            out.flush()
            doing = "sync"
            os.fsync(out.fileno())
        for _ in range(blocks):
            written.update(_BLOCK)
        seconds = time.perf_counter() - began
        doing = "rename"
        os.rename(file, renamed)
        doing = "read back"
        with open(renamed, "rb") as saved:
            found = hashlib.file_digest(saved, "sha256")
        if found.digest() != written.digest():
            raise OSError(errno.EIO, "other bytes came back than were written")
        doing = "delete"
        renamed.unlink()
    except OSError as error:
        for path in (file, renamed):
            _forget(path)
        mend = "free some space, or give another output" if error.errno in _FULL else "give another output"
        raise InputError(f"output: cannot {doing} in {folder} ({error.strerror}); {mend}", STORAGE) from error
    return blocks * len(_BLOCK) / seconds


def checkpoint_bytes(model: torch.nn.Module, optimizer: str = "adamw") -> int:
    """Bytes of one checkpoint: the weights (of LoRA the adapter's alone), what ``optimizer`` keeps of each trained one,
    and the small files beside them.
    """
    from peft import PeftModel

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = trained if isinstance(model, PeftModel) else list(model.parameters())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in saved)
    return weights + moment_bytes(model, optimizer) + len(saved) * _NAME_BYTES + _STATE_BYTES


def check_room(folder: Path, checkpoint_bytes: int, keep: int, result_bytes: int, present: int) -> None:
    """Raise InputError where ``keep`` checkpoints, one more while it is written, and the result do not fit.

    ``present`` are the bytes of checkpoints that lie there already and will make room.
    """
    needed = max((keep + 1) * checkpoint_bytes + result_bytes - present, 0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"output: {folder} has {size(free)} free, and {size(needed)} are needed: {keep} kept checkpoints and the next "
            f"of {size(checkpoint_bytes)} each, and a result of {size(result_bytes)}"
            f"{f', less {size(present)} that lie there' if present else ''}; "
            f"{'lower train.keep, free some space' if keep > 1 else 'free some space'}, or give another output",
            STORAGE,
        )


def describe(checkpoint_bytes: int, bytes_per_second: float, every: int, keep: int) -> str:
    """What saving costs, as said when a run starts; the speed is that of ``probe``."""
    lasts = duration(max(checkpoint_bytes / bytes_per_second, 1.0))
    steps = "every step" if every == 1 else f"every {every:,} steps"
    return f"saves     {size(checkpoint_bytes)} each, about {lasts} here; {steps}, {keep} kept; a stop costs a step and a save"


@contextmanager
def saving(place: Path, needed: int | None = None) -> Iterator[None]:
    """Inside the block ``place`` is written, of ``needed`` bytes where that is known; InputError
    where the disk fails."""
    try:
        yield
    except Exception as error:
        if no_room(error):
            raise refusal(error, place, needed) from error
        raise


def no_room(error: BaseException) -> bool:
    """Whether storage failed: no space, quota, file size limit, bad or read-only disk, from whichever library."""
    return not isinstance(error, InputError) and any(
        _number(one) in _FAILURES or _cut_short(one) for one in _chain(error)
    )


def refusal(error: BaseException, place: Path, needed: int | None) -> InputError:
    """The one line for an error of which ``no_room`` is true, raised while ``place`` was written
    (``.../checkpoint-6``).

    ``needed`` are the bytes that it takes, where known.
    """
    number = next((found for one in _chain(error) if (found := _number(one)) in _FAILURES), None)
    free = shutil.disk_usage(_standing(place)).free
    if number is None and needed is not None and free < needed:
        number = errno.ENOSPC
    reason = os.strerror(number) if number is not None else "a file was cut short while it was written"
    room = f"{size(needed)} needed, {size(free)} free" if needed is not None else f"{size(free)} free"
    return InputError(
        f"{place.parent}: cannot save {place.name} ({reason}): {room}; the older checkpoints are whole. "
        f"{_MENDED_BY.get(number or 0, 'Free some space')} and start the same command again",
        STORAGE,
    )


def size(count: float) -> str:
    """Bytes in decimal units: ``84.1 GB``, ``1.2 MB``, ``312 kB``."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 1e3:,.0f} kB"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    one: BaseException | None = error
    seen: set[int] = set()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _NUMBER_IN_TEXT.search(str(error))
    return int(found.group(1)) if found else None


def _cut_short(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and bool(_TORCH_WRITER.search(str(error)))


def _standing(place: Path) -> Path:
    """The nearest folder at or above ``place`` that exists."""
    return next(path for path in [place, *place.absolute().parents] if path.is_dir())


def _forget(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # what could not be written may not be deletable either
