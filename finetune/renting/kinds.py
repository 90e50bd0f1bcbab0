"""What SkyPilot and Hugging Face Jobs call the kinds of GPUs of the table."""

from __future__ import annotations

from hybrid_ft.errors import InputError, did_you_mean, shown
from hybrid_ft.finetune.machines.gpus import read_table

SKY = {
    "h100": "H100",
    "h200": "H200",
    "b200": "B200",
    "b300": "B300",
    "a100": "A100-80GB",
    "l40s": "L40S",
    "rtx-4090": "RTX4090",
}
HF = {
    "h200": {1: "h200", 2: "h200x2", 4: "h200x4", 8: "h200x8"},
    "a100": {1: "a100-large", 4: "a100x4", 8: "a100x8"},
    "l40s": {1: "l40sx1", 4: "l40sx4", 8: "l40sx8"},
}
"""Flavors, by the number of GPUs. SkyPilot accepts a name that no cloud has, so both are looked up here."""


def known(gpu: str) -> str:
    """The table's key of a kind. Raises InputError with the nearest one."""
    table = read_table()
    if gpu.lower() not in table:
        raise InputError(f"--gpu: {shown(gpu)} must be one of {', '.join(table)}{did_you_mean(gpu.lower(), table)}")
    return gpu.lower()


def accelerators(gpu: str, count: int) -> str:
    """``H100:8``, as a SkyPilot task says it."""
    return f"{SKY[known(gpu)]}:{count}"


def flavor(gpu: str, count: int) -> str:
    """``h200x8``, as Hugging Face Jobs says it. Raises InputError for what is not offered there."""
    kind = known(gpu)
    if kind not in HF:
        raise InputError(f"--gpu: Hugging Face Jobs has no {kind}; it has {', '.join(HF)}")
    if count not in HF[kind]:
        numbers = ", ".join(map(str, HF[kind]))
        raise InputError(f"--gpus: {count} must be one of {numbers}, the numbers of {kind} on Hugging Face Jobs")
    return HF[kind][count]
