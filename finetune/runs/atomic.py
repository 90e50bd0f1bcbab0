"""Files and folders that are whole or absent, and their digests."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from hybrid_ft.finetune import disk
from hybrid_ft.hybrid_model.checkpoint.usual_mode import give_usual_mode

_ABANDONED = 3600.0


def write_text(path: Path, text: str) -> None:
    """Replace a file's content at once: a reader or a crash sees the old text or the new."""
    staged = _staged(path)
    with open(staged, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
    disk.sync(path.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file to: at the block's end it takes that name at once, after
    an error it goes."""
    staged = _staged(path)
    try:
        yield staged
        disk.sync(staged)
        os.replace(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    disk.sync(path.parent)


def _staged(path: Path) -> Path:
    """The name under which a file is written. What a process that was killed has left under such a name goes, once
    nothing has been added to it for _ABANDONED seconds: its process may live on another machine."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        with suppress(OSError):
            if left.suffix[1:].isdigit() and time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
    return path.with_name(f".{path.name}.{os.getpid()}")


def publish(staged: Path, final: Path, beat: Callable[[], None] = lambda: None) -> None:
    """Sync a filled folder and rename it to ``final``, replacing what bears that name. Whoever may read the folder may
    read its weights."""
    give_usual_mode(staged.rglob("*.safetensors"))
    for path in [*staged.rglob("*"), staged]:
        disk.sync(path)
        beat()
    if final.exists():
        remove(final)
    os.rename(staged, final)
    disk.sync(final.parent)


def remove(folder: Path) -> None:
    """Delete a folder; one half deleted no longer bears a name that anything looks for.

    Raises OSError where it cannot be renamed. On a bucket's mount files may still seem to be there after it, or links:
    what cannot be deleted stays under the new name for the next start to delete.
    """
    doomed = folder.with_name(f".removing-{folder.name}-{time.time_ns()}")
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sha256(paths: list[Path], beat: Callable[[], None] = lambda: None) -> dict[Path, str]:
    def digest(path: Path) -> str:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        beat()
        return found

    # hashlib lets go of the interpreter lock, so several shards are read and hashed at once
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(digest, paths), strict=True))
