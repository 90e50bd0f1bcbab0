"""Programs in answers: found, run side by side, each with its own outcome."""

import sys

import pytest
from jail_time import ENOUGH

from hybrid_ft.finetune.evaluation.scorers.code import check_jail, code_in, passes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the jail is Linux's")


def test_right_and_wrong_programs_keep_their_order() -> None:
    check_jail()
    wrong = ["assert 1 == 2", "def f(:", "raise SystemExit(0)", "import os; os._exit(0)", "import sys; sys.exit()"]
    assert passes(["assert 1 + 1 == 2", *wrong, "import re, json, math, collections\nprint('x' * 9000)"], ENOUGH) == [
        True,
        *[False] * len(wrong),
        True,
    ]


def test_code_is_found_in_an_answer() -> None:
    assert code_in("Here:\n```python\nx = 1\r\ny = 2\n```\nand\n```\nz\n```") == "x = 1\ny = 2\n"
    assert code_in("x = 1") == "x = 1"
    assert code_in("```py\nx = 1") == "x = 1"  # cut short
