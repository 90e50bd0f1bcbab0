"""Curves: a long one keeps its spikes."""

from hybrid_ft.finetune.reports.chart import chart


def test_no_spike_is_lost() -> None:
    values = [1.0] * 5000
    values[3333], values[4444] = 9.0, -5.0
    found = chart("loss", [("a", 0, list(map(float, range(5000))), values)])
    assert found is not None and found.curves[0].points.count(" ") < 850
    ups = [float(point.partition(",")[2]) for point in found.curves[0].points.split()]
    assert len({max(ups), min(ups)}) == 2 and sum(up == min(ups) for up in ups) == 1
    assert chart("none", [("a", 0, [], [])]) is None
    assert chart("one", [("a", 0, [3.0], [2.0])]) is not None
    few = chart("steps are whole, and what stays the same is above 0", [("a", 0, [2.0, 4.0], [1e-4, 1e-4])])
    assert few and [label for _, label in few.across] == ["2", "3", "4"]
    assert few.up[0][1] == "0" and few.curves[0].points.split()[0].split(",")[1] == "8"


def test_labels_tell_the_lines_apart() -> None:
    """Values that are one to four digits lie on a flat line, not across a chart whose labels are all the same."""
    for ys in ([0.9999962, 1.0], [5.01795, 5.01803], [3.0, 3.0], [0.0, 0.0]):
        drawn = chart("x", [("a", 0, [4.0, 8.0], ys)])
        assert drawn is not None
        labels = [text for _, text in drawn.up]
        assert len(set(labels)) == len(labels)
    (curve,) = drawn.curves
    assert "nan" not in curve.points
