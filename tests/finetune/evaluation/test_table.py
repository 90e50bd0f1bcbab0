"""The table of scores on the screen."""

import io

from rich.console import Console

from hybrid_ft.finetune.evaluation import table
from hybrid_ft.finetune.evaluation.measure import Measure
from hybrid_ft.finetune.evaluation.statistics import Interval


def test_a_screen_of_80_characters_cuts_nothing_off() -> None:
    screen = io.StringIO()
    models = ["tiny", "medical-think/merged", "runs-of-another-name/merged"]
    measure = Measure("gsm8k", "number", 1319, [Interval(0.5, 0.4, 0.6)] * 3, [Interval(0.0, -0.05, 0.05)] * 2)
    table.show(Console(file=screen, width=80), models, [measure], [])
    text = "".join(screen.getvalue().split())
    assert "…" not in text and "1,319" in text
