"""Bytes of packed files: gz, bz2, xz, zst, and zip archives of one file."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybrid_ft.errors import InputError, short

MOST_UNPACKED = 2**30
"""Bytes that a packed file may unpack to where it is held whole: a few MB of zeros, packed, are gigabytes."""
_PIECE = 2**14
"""Bytes unpacked at a time."""
_MAGIC = {b"\x1f\x8b": ("gzip", ".gz"), b"\x28\xb5\x2f\xfd": ("zstd", ".zst"), b"\xfd7zXZ\x00": ("xz", ".xz")}


def _zst(path: str) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(path), "zstd")


_OPEN: dict[str, Callable[[str], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zst}
PACKINGS = (*_OPEN, ".zip")
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile)
"""What unpacking raises, beside OSError without a number."""


def open_bytes(path: str, packing: str, suffixes: tuple[str, ...]) -> io.BufferedReader:
    """A file's bytes, unpacked. ``suffixes``: the forms that a zip archive's one file may have. Raises InputError."""
    if not packing:
        return Path(path).open("rb")
    if packing == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:  # what was opened in it keeps the file open
                return Unpacked(archive.open(zip_member(path, suffixes)), path)
        except (RuntimeError, NotImplementedError) as error:  # a password, a method that Python has not
            raise InputError(
                f"{path}: cannot be unpacked ({short(str(error))}); unpack it, and name the file"
            ) from None
    return Unpacked(_OPEN[packing](path), path)


def zip_member(path: str, suffixes: tuple[str, ...]) -> str:
    """The one data file in a zip archive. Raises InputError where there is none, or more."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InputError(f"{path}: not a zip archive that can be read ({short(str(error))})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    shown = [name for name in names if not name.startswith("__MACOSX/") and not os.path.basename(name).startswith(".")]
    found = [name for name in shown if os.path.splitext(name.lower())[1] in suffixes]
    if len(found) == 1:
        return found[0]
    several = ", ".join(short(name, 60) for name in (found or shown)[:5]) or "nothing"
    fix = "unpack it, and name the folder or a file in it"
    raise InputError(f"{path}: holds {len(found)} data files ({several}); must hold one: {fix}")


def unpacking_error(path: str, packing: str, line: int, error: Exception) -> InputError:
    """What is said of packed data that ends early or is damaged; ``line``: the last that was read."""
    where = f"{path}:{line}: the {packing[1:]} data after this line" if line else f"{path}: the {packing[1:]} data"
    cut_short = isinstance(error, EOFError) or "Truncated compressed stream" in str(error)
    reason = "ends in the middle; the file was cut short" if cut_short else f"is damaged ({short(str(error))})"
    return InputError(f"{where} {reason}")


def refuse_packed(start: bytes, path: str, line: str = ":1") -> None:
    """Raise InputError for packed data under a name that does not say so."""
    for magic, (kind, suffix) in _MAGIC.items():
        if start.startswith(magic):
            raise InputError(f"{path}{line}: is {kind} data; name the file {os.path.basename(path)}{suffix}")
    if start.startswith(b"PK\x03\x04"):
        raise InputError(f"{path}{line}: is a zip archive; unpack it, or name the file {os.path.basename(path)}.zip")


class _UpToDamage(io.RawIOBase):
    """Unpacked bytes that end where the packed data is cut short or damaged; ``damage`` then is what was raised."""

    def __init__(self, unpacking: Any) -> None:
        self._unpacking = unpacking
        self.damage: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self.damage is not None:
            return 0
        try:
            # read() would lose all that comes before the damage, and a large piece much of it
            piece = self._unpacking.read1(min(len(buffer), _PIECE))
        except (*DAMAGED, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            self.damage = error.with_traceback(None)  # whose frames would keep the file open
            return 0
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._unpacking.close()
        super().close()


class Unpacked(io.BufferedReader):
    """A packed file behind a buffer, without which gzip and bz2 objects have no peek and only slow lines.

    What asks for all that is left, or for a line however long, gets at most MOST_UNPACKED bytes, or an InputError.
    """

    def __init__(self, unpacking: Any, path: str) -> None:
        self._up_to_damage = _UpToDamage(unpacking)
        super().__init__(self._up_to_damage, 2**18)
        self._path = path

    @property
    def damage(self) -> Exception | None:
        """What ended the data early, as soon as its end has been read."""
        return self._up_to_damage.damage

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size >= 0:
            return super().read(size)
        held = io.BytesIO()
        while piece := super().read(2**20):  # asked for at once, the most would be allocated for every file
            held.write(piece)
            self._refuse_too_large(held.tell())
        return held.getvalue()

    def readline(self, size: int | None = -1, /) -> bytes:
        if size is not None and size >= 0:
            return super().readline(size)
        line = super().readline(MOST_UNPACKED + 1)
        self._refuse_too_large(len(line))
        return line

    def _refuse_too_large(self, size: int) -> None:
        if size > MOST_UNPACKED:
            raise InputError(
                f"{self._path}: unpacks to more than {MOST_UNPACKED // 2**20:,} MB, which would be held in memory; "
                "unpack it, or write it as JSON lines, which are read one by one"
            )
