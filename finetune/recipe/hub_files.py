"""Names of single files of hub datasets."""

from __future__ import annotations

import re

from hybrid_ft.errors import shown

HUB_FILES = "hf://datasets/"
"""What such a name begins with."""

_FILE = re.compile(r"hf://datasets/(\w[\w.-]*/\w[\w.-]*)/((?:[^*?\[\]/]+/)*[^*?\[\]/]+)", re.ASCII)


def repository(path: str) -> tuple[str, str]:
    """``ORG/NAME`` and ``FILE`` of ``hf://datasets/ORG/NAME/FILE``. Raises ValueError for any other text."""
    found = _FILE.fullmatch(path)
    if found is None:
        raise ValueError(f"got {shown(path)}; must name one file of a hub dataset, {HUB_FILES}ORG/NAME/FILE")
    return found[1], found[2]


def hub_dataset(path: str) -> str:
    """The hub dataset that a source's path names, itself or one file of it."""
    return repository(path)[0] if path.startswith(HUB_FILES) else path
