"""The GPU check's table: measured, predicted, hardware limit, rivals."""

from __future__ import annotations

from typing import Any

HEAD = ("measurement", "measured", "predicted", "limit", "theirs", "ratio", "note")


def table(rows: list[dict[str, Any]]) -> str:
    """Wrong results first, then every step's rows in their order."""
    wrong = [row for row in rows if row.get("wrong")]
    body = [
        [f"WRONG {row['step']}: {row['name']}", str(row.get("failed", row.get("value"))), *[""] * 5] for row in wrong
    ]
    step = None
    for row in rows:
        if row["step"] != step:
            step = row["step"]
            body.append([f"-- {step}", *[""] * 6])
        body.append(_cells(row))
    lines = [list(HEAD), *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD) - 1)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(line, widths)), line[-1]]).rstrip() for line in lines)


def _cells(row: dict[str, Any]) -> list[str]:
    value, theirs, unit = row.get("value"), row.get("theirs"), row["unit"]
    ratio = ""
    if isinstance(value, float | int) and isinstance(theirs, float | int) and value and theirs:
        ratio = f"{theirs / value if row.get('less_is_better', True) else value / theirs:.2f}x"
    measured = row["failed"] if "failed" in row else _number(value, unit)
    numbers = [_number(row.get(key), unit) for key in ("predicted", "floor", "theirs")]
    return [row["name"], measured, *numbers, ratio, str(row.get("note", ""))]


def _number(x: Any, unit: str) -> str:
    if x is None or isinstance(x, str):
        return x or ""
    digits = f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"
    return f"{digits} {unit}".strip()
