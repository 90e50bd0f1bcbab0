"""A place that holds a copy of a run: bucket, folder, machine by ssh."""

from __future__ import annotations

import logging
import posixpath
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from hybrid_ft.errors import ENVIRONMENT, InputError, did_you_mean, masked, one_line, shown

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "ssh": "paramiko",
    "sftp": "paramiko",
    "az": "adlfs",
    "abfs": "adlfs",
}
"""What a place needs that this program does not bring, by the protocol."""
ANSWER = 60.0
"""seconds that another machine may take to answer"""
_SSH = ("ssh", "sftp")
_FOLDERS = ("file", "local", *_SSH)
"""Protocols where a file that is being written can be read half, and where folders must be made."""


class Place:
    """Files by their relative names. ``name`` is how the place is shown, without credentials.

    An object in a bucket is whole or absent; in a folder what is overwritten is written beside it first and renamed.
    Raises InputError where the place cannot be named or opened; what is asked of it later raises its library's errors.
    """

    def __init__(self, text: str) -> None:
        self.name = masked(text)
        protocol = text.partition("://")[0] if "://" in text else "file"
        # s3:/mine and me@host:mine are no folders that anybody means
        unclear = protocol == "file" and "://" not in text and ":" in text.partition("/")[0]
        nowhere = "://" in text and not text.partition("://")[2].strip("/")
        if "::" in text or unclear or nowhere or protocol not in known_implementations:
            near = "" if unclear or nowhere else did_you_mean(protocol, list(known_implementations))
            raise InputError(
                f"mirror: {shown(self.name)} must be a folder or s3://, gs://, hf://buckets/ or ssh:// and a path{near}"
            )
        self.folders = protocol in _FOLDERS
        self.local = protocol in ("file", "local")
        self._text, self._protocol = text, protocol
        if protocol in ("gs", "gcs"):
            # a warning at each file where it may not ask what kind of bucket this is, and then takes the usual one
            logging.getLogger("gcsfs").setLevel(logging.ERROR)
        self.files, self.root = self._opened()

    def _opened(self) -> tuple[Any, str]:
        ssh = self._protocol in _SSH
        try:
            # a machine that does not answer is to be an error
            waits = {"timeout": ANSWER, "banner_timeout": ANSWER, "auth_timeout": ANSWER} if ssh else {}
            files, root = url_to_fs(self._text, skip_instance_cache=True, **waits)
        except ImportError as error:
            package = PACKAGES.get(self._protocol)
            own = "'hybrid-ft[mirror]'" if package == "s3fs" else package
            how = f"pip install {own}" if own else one_line(error)
            raise InputError(f"mirror: {self.name} needs a package that is not installed; {how}", ENVIRONMENT) from None
        except Exception as error:
            raise unreachable(self.name, "opened", error) from error
        if ssh:
            files.ftp.get_channel().settimeout(ANSWER)
        return files, root.rstrip("/")

    def renew(self) -> None:
        """After an error: a connection by ssh that was lost does not come back by itself. Raises
        InputError as at first."""
        if self._protocol in _SSH:
            self.files, self.root = self._opened()

    def read(self, name: str) -> bytes | None:
        """What a file holds, or None where there is none."""
        self.files.invalidate_cache()
        try:
            content: bytes = self.files.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """A file's content, replaced at once."""
        path = self._path(name)
        if not self.folders:
            self.files.pipe_file(path, content)
            return
        self.files.makedirs(posixpath.dirname(path), exist_ok=True)
        staged = posixpath.join(posixpath.dirname(path), f".{posixpath.basename(path)}.part")
        self.files.pipe_file(staged, content)
        self.files.mv(staged, path)

    def put(self, file: Path, name: str) -> None:
        """Copy a local file, which in a folder may be found half written."""
        path = self._path(name)
        if self.folders:
            self.files.makedirs(posixpath.dirname(path), exist_ok=True)
        self.files.put_file(str(file), path)

    def get(self, name: str, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.files.get_file(self._path(name), str(file))

    def listing(self, under: str = "") -> dict[str, int]:
        """Names of the files in a folder of the place, relative to that folder, and their bytes."""
        self.files.invalidate_cache()
        top = self._path(under)
        # what a folder does not let us see must not be taken for absent
        strict = {"on_error": "raise"} if self.folders else {}
        try:
            found = self.files.find(top, detail=True, **strict)
        except FileNotFoundError:
            return {}
        start = f"{top.strip('/')}/"
        sizes = {path.strip("/").removeprefix(start): entry for path, entry in found.items() if not path.endswith("/")}
        return {name: int(entry["size"] or 0) for name, entry in sizes.items() if name and f"{name}/" != start}

    def first(self) -> str | None:
        """A name that lies at the place's top and is not hidden, if there is any."""
        self.files.invalidate_cache()
        try:
            found = self.files.ls(self.root, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        names = (posixpath.basename(path.rstrip("/")) for path in found if path.strip("/") != self.root.strip("/"))
        return min((name for name in names if name and not name.startswith(".")), default=None)

    def remove(self, name: str) -> None:
        """A file, if it is there."""
        try:
            self.files.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def remove_folder(self, name: str) -> None:
        """File by file: a recursive removal of the library's takes brackets in a name for a pattern."""
        files = self.listing(name)
        for file in files:
            self.remove(f"{name}/{file}")
        if self.folders:
            inner = {above.as_posix() for file in files for above in PurePosixPath(name, file).parents}
            for folder in sorted(
                {name, *(path for path in inner if path.startswith(f"{name}/"))}, key=len, reverse=True
            ):
                with suppress(OSError):
                    self.files.rmdir(self._path(folder))

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")


def unreachable(name: str, doing: str, error: BaseException) -> InputError:
    """The one line for a place that does not answer, or not as it must."""
    return InputError(
        f"mirror: {name} cannot be {doing} ({type(error).__name__}: {one_line(masked(str(error)), 200)}); "
        "fix it, or start without mirror",
        ENVIRONMENT,
    )
