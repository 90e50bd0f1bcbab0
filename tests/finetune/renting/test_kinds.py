"""Names of GPUs: every kind of the table has SkyPilot's, and Hugging Face's flavors are those that it knows."""

import pytest
from huggingface_hub import JobHardware

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.machines.gpus import read_table
from hybrid_ft.finetune.renting.kinds import HF, SKY, accelerators, flavor


def test_every_kind_of_the_table_has_a_name_and_every_flavor_exists():
    assert SKY.keys() == read_table().keys()
    assert HF.keys() <= SKY.keys()
    assert {name for flavors in HF.values() for name in flavors.values()} <= {kind.value for kind in JobHardware}


def test_names():
    assert accelerators("A100", 8) == "A100-80GB:8"
    assert flavor("h200", 8) == "h200x8"


@pytest.mark.parametrize(
    ("gpu", "count", "message"),
    [
        ("h1000", 8, "--gpu: 'h1000' must be one of h100, .*; did you mean h100?"),
        ("h100", 1, "--gpu: Hugging Face Jobs has no h100; it has h200, a100, l40s"),
        ("a100", 2, "--gpus: 2 must be one of 1, 4, 8, the numbers of a100 on Hugging Face Jobs"),
    ],
)
def test_refused(gpu, count, message):
    with pytest.raises(InputError, match=message):
        flavor(gpu, count)
