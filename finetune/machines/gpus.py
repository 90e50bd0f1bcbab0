"""The kinds of GPUs that can be rented: memory, speed, dated prices."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_ft.errors import InputError, did_you_mean, shown
from hybrid_ft.finetune.recipe.yaml_file import read_yaml

TABLE = Path(__file__).with_name("gpus.yaml")
_NUMBERS = ("memory", "tflops", "bandwidth", "link")


@dataclass(frozen=True)
class Offer:
    """``price``: USD an hour for one GPU. ``date``: when it was listed, ISO; None for one that the user named."""

    price: float
    place: str
    date: str | None

    def __str__(self) -> str:
        return f"{self.price:.2f} $ a GPU and hour ({self.place}{f', {self.date}' if self.date else ''})"


@dataclass(frozen=True)
class Gpu:
    """memory: bytes; flops: bfloat16 operations a second; mfu: shares of them, low and high; bandwidth: bytes a second
    to and from its memory; link: bytes a second to its neighbours."""

    key: str
    name: str
    memory: float
    flops: float
    mfu: tuple[float, float]
    bandwidth: float
    link: float
    offers: tuple[Offer, ...]

    @property
    def offer(self) -> Offer:
        """The one that is reckoned with: the first."""
        return self.offers[0]

    def dearest_and_cheapest(self) -> str:
        prices = [offer.price for offer in self.offers]
        return f"{min(prices):.2f} to {max(prices):.2f}" if len(set(prices)) > 1 else f"{prices[0]:.2f}"


def read_table(file: str | None = None) -> dict[str, Gpu]:
    """The table that ships, with the kinds of ``file`` in their place or added. Raises InputError."""
    found = _read(TABLE)
    if file is not None:
        if not Path(file).is_file():
            raise InputError(f"--prices: {file} is not a file; it must be YAML in the form of {TABLE.name}")
        found |= _read(Path(file))
    return found


def find(table: dict[str, Gpu], key: str) -> Gpu:
    """Raises InputError for a kind that is not in the table."""
    if key.lower() in table:
        return table[key.lower()]
    hint = did_you_mean(key.lower(), table) or "; --prices FILE adds one"
    raise InputError(f"--gpu: {key!r} must be one of {', '.join(table)}{hint}")


def _read(path: Path) -> dict[str, Gpu]:
    rows = read_yaml(path).value
    if not isinstance(rows, dict) or not rows:
        raise InputError(f"{path}: must be a mapping of kinds of GPUs")
    return {str(key).lower(): _gpu(str(key).lower(), row, f"{path}: {key}") for key, row in rows.items()}


def _gpu(key: str, row: Any, place: str) -> Gpu:
    wanted = {"name", "mfu", "offers", *_NUMBERS}
    if not isinstance(row, dict) or row.keys() != wanted:
        raise InputError(f"{place}: is {shown(row)}; must have exactly {', '.join(sorted(wanted))}")
    memory, tflops, bandwidth, link = (_positive(row[name], f"{place}.{name}") for name in _NUMBERS)
    mfu = row["mfu"]
    if not isinstance(mfu, list) or len(mfu) != 2:
        raise InputError(f"{place}.mfu: is {shown(mfu)}; must be two shares, from and to")
    low, high = (_positive(share, f"{place}.mfu") for share in mfu)
    if not low <= high <= 1:
        raise InputError(f"{place}.mfu: is {shown(mfu)}; must rise and be at most 1")
    offers = row["offers"]
    if not isinstance(offers, list) or not offers:
        raise InputError(f"{place}.offers: is {shown(offers)}; must be a list of price, place and date")
    read = tuple(_offer(offer, f"{place}.offers[{number}]") for number, offer in enumerate(offers))
    return Gpu(key, str(row["name"]), memory * 1e9, tflops * 1e12, (low, high), bandwidth * 1e12, link * 1e9, read)


def _offer(row: Any, place: str) -> Offer:
    if not isinstance(row, dict) or row.keys() != {"price", "place", "date"}:
        raise InputError(f"{place}: is {shown(row)}; must have exactly price, place and date")
    try:
        date = datetime.date.fromisoformat(str(row["date"]))
    except ValueError:
        raise InputError(f"{place}.date: is {shown(row['date'])}; must be a day such as 2026-11-09") from None
    return Offer(_positive(row["price"], f"{place}.price"), str(row["place"]), date.isoformat())


def _positive(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise InputError(f"{place}: is {shown(value)}; must be a number above 0")
    return float(value)
