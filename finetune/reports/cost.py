"""What a run's steps have cost, where its GPU's price is known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.machines.gpus import Offer, read_table
from hybrid_ft.finetune.reports.kept_run import read_run

_NAMES = {
    "h100": r"\bH100 80GB HBM3\b",
    "h200": r"\bH200\b",
    "b200": r"\bB200\b",
    "b300": r"\bB300\b",
    "a100": r"\bA100-SXM4-80GB\b",
    "l40s": r"\bL40S\b",
    "rtx-4090": r"\bRTX 4090$",
}
"""The price table's kinds, as CUDA names them. Other forms of a kind (PCIe, half the memory) have other prices."""


def cost(record: dict[str, Any], recipe: dict[str, Any], seconds: float, price: float | None = None) -> str | None:
    """``12.34 $ at 3.99 $ a GPU and hour (RunPod secure, 2026-11-09)`` of ``seconds`` in steps; None where no price is
    known.

    ``record``: the run's. ``price``: USD for one GPU for an hour; by default the recipe's gpu_price, or else the
    table's for the device that the run has noted.
    """
    offer = _offer(str(record.get("device", "")), recipe.get("gpu_price") if price is None else price)
    if offer is None:
        return None
    count = record.get("processes", 1)
    dollars = seconds / 3600 * count * offer.price
    return f"{f'{dollars:,.2f}' if dollars >= 0.01 else 'under 0.01'} $ at {offer}"


def cost_at_end(folder: Path) -> str | None:
    """Of the run that has just ended in a folder, as ``cost`` has it; None where that cannot be read: the results are
    there, and nothing that goes wrong with a line about money may undo them."""
    try:
        run = read_run(folder, folder.name)
        return cost(run.record, run.recipe, sum(run.series("seconds")[1]))
    except (InputError, OSError):
        return None


def _offer(device: str, price: Any) -> Offer | None:
    if isinstance(price, int | float) and not isinstance(price, bool):
        return Offer(float(price), "as given", None)
    table = read_table()
    return next((table[key].offer for key, name in _NAMES.items() if re.search(name, device)), None)
