"""What is seen while a run trains, on a terminal and in a file."""

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from hybrid_ft.finetune.runs.console import duration, say
from hybrid_ft.finetune.training.sft.stage import show_progress

LOGS = {
    "loss": 2.5,
    "learning_rate": 1e-3,
    "grad_norm": 1.25,
    "tokens": 512,
    "tokens_per_s": 1234.5,
    "padding": 0.125,
    "seconds": 0.4,
    "memory": 10,
    "entropy": 3.0,
}


def shown(metrics, terminal: bool) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=120, color_system=None)
    progress = show_progress(console, metrics)
    state = SimpleNamespace(global_step=4, max_steps=8, epoch=0.5, is_world_process_zero=True)
    progress.on_train_begin(None, state, None)
    for step in (5, 6):
        state.global_step = step
        progress.on_log(None, state, None, logs=dict(LOGS, loss=3.5 - step / 4))
    progress.on_log(None, state, None, logs={"eval_loss": 1.75, "eval_tokens": 9})
    progress.on_log(None, state, None, logs={"train_runtime": 3.0})
    progress.on_train_end(None, state, None)
    return screen.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_loss_rate_speed_padding_and_time_left_are_shown(tmp_path, terminal):
    text = shown(tmp_path / "metrics.jsonl", terminal)
    for part in (
        "loss 2.0000",
        "lr 1.00e-03",
        "1,234 tokens/s",
        "padding 12%",
        "s left",
        "step 6/8",
        "held-out loss 1.7500",
    ):
        assert part in text
    # a file gets lines, the last state among them; a terminal's line moves, and its last state stays
    assert (text.count("\x1b[") > 0) == terminal
    if not terminal:
        assert [line.split("  ")[0] for line in text.splitlines()] == ["step 5/8", "step 6/8", "step 6/8"]


def test_a_file_gets_a_line_now_and_then(tmp_path, monkeypatch):
    from hybrid_ft.finetune.training import progress

    clock = iter(range(10_000))  # a second whenever it is looked at, a few times a step
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    screen = io.StringIO()
    live = show_progress(Console(file=screen, width=120), tmp_path / "metrics.jsonl")
    state = SimpleNamespace(global_step=0, max_steps=40, epoch=0.5, is_world_process_zero=True)
    live.on_train_begin(None, state, None)
    for step in range(1, 41):
        state.global_step = step
        live.on_log(None, state, None, logs=LOGS)
    live.on_train_end(None, state, None)
    steps = [int(line.split()[1].partition("/")[0]) for line in screen.getvalue().splitlines()]
    assert steps[0] == 1 and steps[-1] == 40 and 5 < len(steps) < 20 and len(set(steps)) == len(steps)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 40


def test_metrics_are_a_json_line_each(tmp_path):
    shown(tmp_path / "metrics.jsonl", terminal=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 6, 6]
    assert lines[1] == {"step": 6, "epoch": 0.5} | {key: LOGS[key] for key in LOGS if key != "entropy"} | {"loss": 2.0}
    assert lines[2] == {"step": 6, "epoch": 0.5, "eval_loss": 1.75, "eval_tokens": 9}


def test_names_of_rows_are_no_markup(tmp_path):
    screen = io.StringIO()
    say(Console(file=screen, width=20), "hub/rows[train]:3 [bold]and a path longer than the line")
    assert screen.getvalue() == "hub/rows[train]:3 [bold]and a path longer than the line\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.9, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_as_people_say_them(seconds, text):
    assert duration(seconds) == text
