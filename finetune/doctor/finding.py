"""One check's answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """``red``: the machine is not fit, ``said`` has the mend. ``here``: False for what this machine does not have."""

    name: str
    said: str
    red: bool = False
    here: bool = True

    def __str__(self) -> str:
        mark = "red" if self.red else "ok" if self.here else "-"
        return f"{mark:4}{self.name:13}{self.said}"


def absent(name: str) -> Finding:
    return Finding(name, "not here", here=False)
