"""What nvidia-smi and the kernel's log say of the GPUs."""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Iterator, Sequence

from hybrid_ft.finetune.doctor.finding import Finding

_REASONS, _REASONS_BEFORE = "clocks_event_reasons.active", "clocks_throttle_reasons.active"
FIELDS = (
    "index",
    "name",
    "driver_version",
    "memory.total",
    "memory.used",
    "ecc.errors.uncorrected.volatile.total",
    _REASONS,
    "temperature.gpu",
    "clocks.sm",
    "clocks.max.sm",
    "pcie.link.width.current",
    "mig.mode.current",
)
_SLOWED = {0x8: "hardware slowdown", 0x20: "too hot (driver)", 0x40: "too hot (hardware)", 0x80: "power brake"}
"""bits of clocks_event_reasons.active, as NVML numbers them"""
_BROKEN = ("err!", "unknown error", "lost", "requires reset")
"""in a value, of a GPU that has failed"""
_PATIENCE = 10.0
"""seconds; a GPU that has fallen off the bus makes nvidia-smi wait for minutes"""
_USED = 2048
"""MiB that another program may have"""
_XID = {48, 63, 64, 74, 79, 94, 95}
"""double bit errors, pages retired or rows remapped, NVLink, fallen off the bus, contained and uncontained ECC
errors"""
_XID_LINE = re.compile(r"NVRM: Xid \((?P<where>[^)]*)\): (?P<number>\d+)")


class Failed(Exception):
    """nvidia-smi is there and gives no answer; the text is what it says."""


def query() -> str | None:
    """nvidia-smi's CSV without header and units; None where there is no such program. Raises Failed."""
    done = _run(_asking(FIELDS))
    if done is not None and done.returncode and _REASONS in done.stdout + done.stderr:
        # the name of drivers before 535
        done = _run(_asking([_REASONS_BEFORE if name == _REASONS else name for name in FIELDS]))
    if done is None:
        return None
    if done.returncode:
        lines = (done.stdout + done.stderr).split("\n")
        raise Failed(next(filter(None, map(str.strip, lines)), f"status {done.returncode}")[:200])
    return done.stdout


def kernel_log() -> str | None:
    """None where it may not be read, as in most containers."""
    try:
        done = _run(["dmesg"])
    except Failed:
        return None
    return done.stdout if done and done.returncode == 0 else None


def finding_of_failure(said: str) -> Finding:
    return Finding("GPUs", f"nvidia-smi fails: {said.rstrip('.')}; mend the driver, or take another machine", red=True)


def findings_of_gpus(text: str) -> Iterator[Finding]:
    """One for each line of ``query``; a value in brackets (``[N/A]``) is one that this GPU does not give, or says
    that it is lost."""
    for row in csv.reader(text.strip().splitlines(), skipinitialspace=True):
        if len(row) != len(FIELDS):
            yield Finding(
                "GPU", f"nvidia-smi says {', '.join(row)[:120]!r}; it must give {len(FIELDS)} values", red=True
            )
            continue
        of = dict(zip(FIELDS, (value.strip() for value in row), strict=True))
        wrong = list(_wrong(of))
        said = (
            f"{of['name']}, driver {of['driver_version']}, {of['memory.total']} MiB, {of['temperature.gpu']} C, "
            f"{of['clocks.sm']} of {of['clocks.max.sm']} MHz"
        )
        yield Finding(f"GPU {of['index']}", said + "".join(f"; {one}" for one in wrong), red=bool(wrong))


def finding_of_log(text: str | None) -> Finding:
    if text is None:
        return Finding("Xid", "the kernel's log may not be read here: not known", here=False)
    found = [(int(match["number"]), match["where"]) for match in _XID_LINE.finditer(text)]
    bad = sorted({f"{number} on {where}" for number, where in found if number in _XID})
    if bad:
        return Finding("Xid", f"{', '.join(bad)} in the kernel's log; take another machine", red=True)
    return Finding("Xid", f"{len(found)} in the kernel's log, none of a broken GPU")


def _wrong(of: dict[str, str]) -> Iterator[str]:
    broken = sorted({value for value in of.values() if any(words in value.lower() for words in _BROKEN)})
    if broken:
        yield f"nvidia-smi says {', '.join(broken)}: take another machine"
    errors = _number(of["ecc.errors.uncorrected.volatile.total"])
    if errors:
        yield f"{errors:,} uncorrected ECC errors: take another machine"
    reasons = of["clocks_event_reasons.active"]
    bits = int(reasons, 16) if reasons.lower().startswith("0x") else 0
    slowed = [name for bit, name in _SLOWED.items() if bits & bit]
    if slowed:
        yield f"slowed down: {', '.join(slowed)}; let it cool or take another machine"
    used = _number(of["memory.used"])
    if used is not None and used > _USED:
        yield f"{used:,} MiB are used by another program: end it"
    if _number(of["pcie.link.width.current"]) == 1:
        yield "on one PCIe lane: a riser for mining; take another machine"
    if of["mig.mode.current"] == "Enabled":
        yield "MIG is on: a process sees a part of it; turn it off, nvidia-smi -mig 0"


def _number(value: str) -> int | None:
    return int(value) if value.isdecimal() else None


def _asking(fields: Sequence[str]) -> list[str]:
    return ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    """None where there is no such program that may be run. Raises Failed where it hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False, errors="replace")
    except OSError:
        return None
    except subprocess.TimeoutExpired:
        raise Failed(f"no answer within {_PATIENCE:.0f} s") from None
