"""What is said of a mirror that lacks something."""

import pytest

from hybrid_ft.finetune.runs.mirror_account import behind


@pytest.mark.parametrize(
    ("known", "saved", "finished", "text"),
    [
        ({"step": 4}, 4, False, ""),
        ({"step": None}, 0, False, ""),
        ({"step": 4, "whole": True}, 4, True, ""),
        ({"step": None, "fault": "X: y"}, 3, False, "the mirror p has no checkpoint and lacks step 3 (X: y)"),
        ({"step": 4, "whole": False}, 4, True, "the mirror p has step 4 and lacks the result"),
        ({"step": 2, "whole": False}, 4, True, "the mirror p has step 2 and lacks step 4 and the result"),
    ],
)
def test_how_far_behind(known, saved, finished, text):
    assert behind({"place": "p"} | known, saved, finished) == text
