"""Bounds under which a score fails the command."""

from pathlib import Path

import pytest
from evaluate_runs import run

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation import gate
from hybrid_ft.finetune.evaluation.measure import Measure
from hybrid_ft.finetune.evaluation.statistics import Interval


def test_a_gate(place: Path) -> None:
    Path("limits.yaml").write_text("exact: 0.5\nloss: {loss: 0.1, drop: 0.5}\n")
    status, screen = run(["first"], tasks=["exact.yaml", "loss.yaml"], fail_below=Path("limits.yaml"))
    assert status == gate.BELOW
    assert "exact: exact is 0.0; must be at least 50.0" in screen and "must be at most 0.1000" in screen
    Path("limits.yaml").write_text("exact: 0\nloss: {loss: 99}\n")
    assert run(["first"], tasks=["exact.yaml", "loss.yaml"], fail_below=Path("limits.yaml"))[0] == 0
    for text, said in (
        ("exat: 0.5\n", "limits.yaml:1: exat: no such task is evaluated .*did you mean exact?"),
        ("exact: high\n", "limits.yaml:1: exact: got 'high'; must be a number"),
        ("exact: {exat: 1}\n", "limits.yaml: exact: no measure exat"),
    ):
        Path("limits.yaml").write_text(text)
        with pytest.raises(InputError, match=said):
            run(["first"], tasks=["exact.yaml"], fail_below=Path("limits.yaml"), out=Path("new"))
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("name", "change", "dropped"),
    [
        ("exact", (-0.2, -0.3, -0.05), True),
        ("exact", (-0.2, -0.4, 0.0), False),
        ("loss", (0.2, 0.1, 0.3), True),
        ("loss", (0.2, 0.01, 0.3), False),
    ],
)
def test_a_gate_s_drop_is_beyond_doubt(name: str, change: tuple[float, float, float], dropped: bool) -> None:
    measure = Measure("t", name, 10, [Interval(0.5, 0.4, 0.6)] * 2, [Interval(*change)], falls=name == "loss")
    assert bool(gate.failures({"t": {"drop": 0.03}}, [measure])) is dropped
