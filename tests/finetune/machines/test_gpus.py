"""The table of kinds of GPUs: what ships, a user's own, and what is wrong in one."""

import json
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.machines.gpus import read_table

GOOD = {"name": "Mine", "memory": 100, "tflops": 500, "bandwidth": 2, "mfu": [0.2, 0.4], "link": 20}


OFFER = {"price": 1.0, "place": "here", "date": "2026-11-01"}


def test_a_users_table_replaces_and_adds(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(json.dumps({"h100": GOOD | {"offers": [OFFER]}, "mine": GOOD | {"offers": [OFFER]}}))
    table = read_table(str(file))
    assert table["h100"].name == table["mine"].name == "Mine" and table["h200"].memory == 141e9
    assert str(table["mine"].offer) == "1.00 $ a GPU and hour (here, 2026-11-01)"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"mine": GOOD}, "mine: is a mapping"),
        ({"mine": GOOD | {"offers": []}}, "mine.offers: is an empty list"),
        ({"mine": GOOD | {"offers": [OFFER | {"price": -1}]}}, "price: is -1; must be a number above 0"),
        ({"mine": GOOD | {"offers": [OFFER | {"date": "May"}]}}, "date: is 'May'; must be a day"),
        ({"mine": GOOD | {"mfu": [0.5, 0.2], "offers": [OFFER]}}, "must rise and be at most 1"),
        ({"mine": GOOD | {"memory": "80GB", "offers": [OFFER]}}, "mine.memory: is '80GB'"),
    ],
)
def test_a_table_that_is_wrong_is_one_line(tmp_path: Path, rows: Any, said: str) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(json.dumps(rows))
    with pytest.raises(InputError) as refused:
        read_table(str(file))
    assert said in str(refused.value) and str(refused.value).startswith(f"{file}: ")
    assert "\n" not in str(refused.value)


def test_every_price_that_ships_is_dated_and_every_kind_has_room() -> None:
    for gpu in read_table().values():
        assert all(offer.date and offer.date >= "2026-08-01" for offer in gpu.offers)
        assert 20e9 < gpu.memory < 300e9 and 1e14 < gpu.flops < 3e15
