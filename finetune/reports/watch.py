"""``hybrid-ft watch``: a run as it goes, read from its folder alone.

Files are polled and nothing is locked, so that a folder on a plain file share is watched from another machine.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hybrid_ft.errors import NUMERICS, InputError, masked
from hybrid_ft.finetune.evaluation.files import RESULTS
from hybrid_ft.finetune.reports.cost import cost
from hybrid_ft.finetune.reports.kept_run import read_recipe
from hybrid_ft.finetune.reports.read import read_lines, read_object
from hybrid_ft.finetune.reports.text_chart import text_chart
from hybrid_ft.finetune.runs import lock
from hybrid_ft.finetune.runs.console import duration, say
from hybrid_ft.finetune.runs.status import Status, status

_CURVES = (
    ("loss", "loss"),
    ("held-out loss", "eval_loss"),
    ("margin", "rewards/margins"),
    ("right order", "rewards/accuracies"),
    ("learning rate", "learning_rate"),
    ("gradient norm", "grad_norm"),
    ("tokens/s", "tokens_per_s"),
)
_CHART = 38  # signs across
_ANSWERS = 3
_LONGEST = 300  # signs of an answer


class Metrics:
    """The lines of a run's metrics, of which only what is new is read; all again where the file is another one."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines: list[dict[str, Any]] = []
        self._at, self._of = 0, 0

    def read(self) -> None:
        try:
            found = self.file.stat()
            if found.st_size < self._at or found.st_ino != self._of:
                self.lines, self._at, self._of = [], 0, found.st_ino
            with self.file.open("rb") as stream:
                stream.seek(self._at)
                new = stream.read()
        except OSError:
            return  # not there yet, or the share is away for a moment
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        for raw in whole.splitlines():
            try:
                line = json.loads(raw)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                self.lines.append(line)

    def series(self, name: str) -> tuple[list[float], list[float]]:
        pairs = [(line["step"], line[name]) for line in self.lines if isinstance(line.get(name), int | float)]
        finite = [(float(step), float(value)) for step, value in pairs if abs(value) < float("inf")]
        return [step for step, _ in finite], [value for _, value in finite]


def watch(
    place: Path,
    console: Console,
    every: float,
    once: bool,
    sleep: Callable[[float], None] = time.sleep,
    price: float | None = None,
) -> int:
    """Show a run, or the stage at work of several, until it ends; ``once``: as it stands.

    ``price``: USD for one GPU for an hour. Returns 0, or status 4 where the run ended in a number that is not finite.
    Raises InputError for a place that does not hold a run."""
    if not place.is_dir():
        raise InputError(f"{place}: there is no such folder; name a run's, the recipe's output")
    if (other := _no_run(place)) is not None:
        raise InputError(f"{place}: {other}; name a run's folder, the recipe's output")
    seen = _Seen(place, price)
    if once:
        seen.look()
        console.print(seen.view(console.width))
        return 0
    if not console.is_terminal:
        return _in_lines(seen, console, every, sleep)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while not seen.ended:
            seen.look()
            live.update(seen.view(console.width), refresh=True)
            if not seen.ended:
                sleep(every)
    console.print(seen.view(console.width))
    return seen.code


def _in_lines(seen: _Seen, console: Console, every: float, sleep: Callable[[float], None]) -> int:
    said = ""
    while True:
        seen.look()
        if (line := seen.line()) != said:
            say(console, line)
            said = line
        if seen.ended:
            return seen.code
        sleep(every)


class _Seen:
    """What is known of a run by now."""

    def __init__(self, place: Path, price: float | None = None) -> None:
        self.place, self.run, self.price = place, place, price
        self.recipe: dict[str, Any] = {}
        self.metrics = Metrics(place / "metrics.jsonl")
        self.record: dict[str, Any] = {}
        self.state: Status | None = None
        self.trouble = ""
        self.looked = self.changed = time.monotonic()

    @property
    def ended(self) -> bool:
        return self.state is not None and self.state.code in (0, NUMERICS)

    @property
    def code(self) -> int:
        return self.state.code if self.state else 0

    def look(self) -> None:
        """Read what is new. What cannot be read now, as over a share that is away, is read the next time."""
        self.looked = time.monotonic()
        run = _stage_at_work(self.place)
        if run != self.run:
            self.run, self.metrics, self.record = run, Metrics(run / "metrics.jsonl"), {}
        count = len(self.metrics.lines)
        self.metrics.read()
        if len(self.metrics.lines) != count:
            self.changed = self.looked
        self.trouble = ""
        if not (run / "run.json").is_file():
            self.trouble = "has not begun: its data and model are being read"
            return
        try:
            self.record = read_object(run / "run.json")
            self.state = status(self.place)
            self.recipe = read_recipe(run)
        except InputError as error:
            self.trouble = str(error)

    def line(self) -> str:
        """All of it in one line."""
        if not self.record:
            return f"{self.place}: {self.trouble}"
        last: dict[str, Any] = {}
        for line in self.metrics.lines[-50:]:
            last |= line
        step, total = last.get("step", 0), self.record.get("steps")
        parts = [f"{self.run}: step {step}" + (f"/{total}" if isinstance(total, int) else "")]
        parts += [f"{title} {last[name]:.4g}" for title, name in _CURVES[:4] if isinstance(last.get(name), int | float)]
        if self.ended and self.state:
            parts.append(self.state.text.rpartition(": ")[2])
        return "  ".join(parts)

    def view(self, width: int) -> Group:
        parts: list[Any] = [_text(self._head(), "bold"), _text(self._below(), "dim"), Text()]
        names = dict.fromkeys(name for line in self.metrics.lines for name in line if name.startswith("suite/"))
        curves = [*_CURVES, *((name.removeprefix("suite/").replace("/", ": "), name) for name in names)]
        charts = []
        for title, name in curves:
            steps, values = self.metrics.series(name)
            if values:
                charts.append(_text("\n".join(text_chart(title, steps, values, min(_CHART, width)))))
        if charts:
            parts.append(Columns(charts, padding=(0, 3)))
        for title, answers in last_answers(self.run):
            parts += [Text(), _text(title, "dim")]
            table = Table.grid(padding=(0, 2))
            table.add_column(no_wrap=True, style="bold")
            for name, text in answers:
                table.add_row(f"  {name}", _text(_short(text)))
            parts.append(table)
        return Group(*parts)

    def _head(self) -> str:
        if not self.record:
            return f"{self.place}: {self.trouble}"
        step = max((line["step"] for line in self.metrics.lines), default=0)
        total = self.record.get("steps")
        of = f" of {total:,}" if isinstance(total, int) else ""
        state = self.state.text.partition(": ")[2] if self.ended and self.state else "at work, or stopped"
        return f"{self.run}  {self.record.get('stage', '')}, step {step:,}{of}: {state}"

    def _below(self) -> str:
        if self.trouble and self.record:
            return f"cannot be read just now: {self.trouble}"
        parts = []
        tokens, seconds = self.metrics.series("tokens")[1], self.metrics.series("seconds")
        if tokens:
            parts.append(f"{tokens[-1]:,.0f} tokens")
        if seconds[1]:
            spent, steps, total = sum(seconds[1]), seconds[0][-1], self.record.get("steps")
            paid = cost(self.record, self.recipe, spent, self.price)
            parts.append(f"{duration(spent)} in steps" + (f", {paid}" if paid else ""))
            if isinstance(total, int) and steps and not self.ended:
                parts.append(f"{duration(spent / steps * max(0, total - steps))} of steps left")
        if memory := self.metrics.series("memory")[1]:
            parts.append(f"{max(memory) / 2**30:.2f} GiB at most")
        quiet = self.looked - self.changed
        if quiet >= 60 and not self.ended:
            parts.append(f"nothing new for {duration(quiet)}")
        return ", ".join(parts)


def _no_run(place: Path) -> str | None:
    """What a folder is that is no run's, begun or about to; None for one that may be."""
    held = [name for name in ("run.json", "pipeline.json") if (place / name).is_file()]
    if held:
        return None
    if (place / RESULTS).is_file():
        return f"is the folder of an evaluation, which has no curves; hybrid-ft report {place} shows it"
    there = sorted(one.name for one in place.iterdir())
    if not there or lock.NAME in there:  # being made by a run that reads its data
        return None
    runs = [one for one in there if (place / one / "run.json").is_file() or (place / one / "pipeline.json").is_file()]
    if runs:
        return f"holds runs ({', '.join(runs[:5])}{', ...' if len(runs) > 5 else ''}) and is not one itself"
    if {"config.json", "adapter_config.json"} & set(there):
        return "is the folder of a model, not of a run"
    return f"holds {', '.join(there[:3])}{', ...' if len(there) > 3 else ''} and not a run"


def _stage_at_work(place: Path) -> Path:
    """Of a folder of stages the last that was begun; else the place itself."""
    if not (place / "pipeline.json").is_file():
        return place
    stages = [one for one in place.iterdir() if re.fullmatch(r"\d+-\w+", one.name) and (one / "run.json").is_file()]
    return max(stages, key=lambda one: int(one.name.partition("-")[0]), default=place)


def last_answers(run: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """A few answers of the latest that the run has kept: what was asked, and each answer by its name."""
    for when in ("after", "before"):
        found = []
        for kind, head in (("samples", "prompt"), ("answers", "origin")):
            for line in read_lines(run / f"{kind}-{when}.jsonl")[:_ANSWERS]:
                more = [("reference", str(line["reference"]))] if "reference" in line else []
                found.append((str(line.get(head, "")), [(when, str(line.get("answer", ""))), *more]))
        steps = sorted((run / "suite").glob("step-*"), key=lambda one: int(one.name.removeprefix("step-")))
        if when == "before" and steps and (of_step := _of_step(steps[-1])):
            return of_step
        if found:
            return found[:_ANSWERS]
    return []


def _of_step(folder: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    found = []
    for task in sorted(one for one in folder.iterdir() if one.is_dir()):
        lines = [line for file in sorted(task.glob("*.jsonl")) for line in read_lines(file) if "answer" in line]
        for line in lines[:1]:
            title = f"{task.name}, {folder.name.replace('-', ' ')}, {line.get('origin', '')}"
            found.append((title, [("answer", str(line["answer"])), ("reference", str(line.get("reference", "")))]))
    return found[:_ANSWERS]


def _short(text: str) -> str:
    line = re.sub(r"\s*\n\s*", " ", text)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _text(text: str, style: str = "") -> Text:
    """Rows and answers are hostile: no control code reaches the terminal, and secrets are masked."""
    shown = "".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in masked(text))
    return Text(shown, style=style)
