"""Suggests the file of nearly that name."""

from __future__ import annotations

import difflib
import itertools
import os

from hybrid_ft.errors import nearest

_MOST_FILES = 1_000


def nearest_file(path: str, *beside: str) -> str:
    """``; did you mean FILE?`` for a file of nearly that name in the same folder; says where there is no such folder.

    Stems are compared, so that a common suffix does not count. ``beside``: further folders that a relative path may
    start from.
    """
    seen = not path.isprintable()
    for base in ("", *beside) if path.isprintable() else ():
        folder, name = os.path.split(os.path.join(base, os.path.expanduser(path)))
        try:
            with os.scandir(folder or ".") as entries:
                names = [entry.name for entry in itertools.islice(entries, _MOST_FILES) if entry.name.isprintable()]
        except (OSError, ValueError):
            continue
        seen = True
        stem = nearest(name.partition(".")[0], {known.partition(".")[0] for known in names})
        of_stem = [known for known in names if stem is not None and known.partition(".")[0] == stem]
        if of_stem:
            near = difflib.get_close_matches(name, of_stem, n=1, cutoff=0)[0]
            return f"; did you mean {os.path.join(folder, near)}?"
    folder = os.path.dirname(path)
    return "" if seen or not folder or "://" in path else f"; there is no folder {folder} either"
