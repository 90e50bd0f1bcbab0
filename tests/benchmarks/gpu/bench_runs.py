"""The benchmark run on tiny shapes, and the table that it prints, read again."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def options_for(parts: str, **changed: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"parts": parts, "smoke": True, "turns": 2, "seconds": 60, "limit": 60, "out": None} | changed
    )


def in_process(bench: SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_child(name: str, options: argparse.Namespace, alone: str = "") -> list[dict[str, Any]]:
        options.child, options.record, options.alone = name, folder / "record.json", alone
        bench.main.child(options)
        return json.loads(options.record.read_text())

    monkeypatch.setattr(bench.main, "run_child", run_child)


def printed_rows(bench: SimpleNamespace, text: str) -> dict[str, str]:
    """The table's line of each row; every row has one, and only one."""
    found = {}
    for part in bench.rows.PARTS.values():
        for row in part.rows:
            (line,) = (line for line in text.splitlines() if line.startswith(f"{row.label}  "))
            found[row.name] = line[len(row.label) :]
    return found
