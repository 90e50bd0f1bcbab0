"""The table as plain text: what was measured, against which bar, what was not.

Plain text; nothing is imported.
"""

from __future__ import annotations

from typing import Any

from rows import Row

HEAD = ("measurement", "ours", "theirs", "ratio", "bar", "met", "note")


def cells(row: Row, record: dict[str, Any] | None, judged: bool = True) -> list[str]:
    """``record`` is None where nothing was tried; with ``failed`` it says why there are no numbers."""
    bar = row.bar.text(row.unit)
    if record is None:
        return [row.label, "not measured", "not measured", "", bar, "", ""]
    if "failed" in record:
        return [row.label, record["failed"], "not measured", "", bar, "", ""]
    theirs = record["theirs"]
    ratio = record.get("share" if row.bar.of == "share" else "ratio")
    met = verdict(row, record) if judged else None
    return [
        row.label,
        _spread(record["ours"], row.unit),
        theirs if isinstance(theirs, str) else _spread(theirs, row.unit),
        "" if ratio is None else f"{ratio:.2f}x",
        bar,
        "" if met is None else "yes" if met else "no",
        "; ".join(filter(None, [record.get("note", ""), f"{record['turns']} turn{'s' * (record['turns'] != 1)}"])),
    ]


def verdict(row: Row, record: dict[str, Any]) -> bool | None:
    """Whether the bar is met; None where the number it needs is missing."""
    if "failed" in record:
        return None
    number = record["ours"]["median"] if row.bar.of == "ours" else record.get(row.bar.of)
    return None if number is None else row.bar.met(number)


def _spread(times: dict[str, float], unit: str) -> str:
    median, least, most = (_number(times[key]) for key in ("median", "least", "most"))
    return f"{median} {unit}" if least == most else f"{median} {unit} ({least} to {most})"


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def lines(body: list[list[str]]) -> list[str]:
    table = [list(HEAD), *body]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
    padded = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
    return [padded[0], "-" * sum(widths, 2 * (len(HEAD) - 1)), *padded[1:]]
