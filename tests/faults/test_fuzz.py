"""Thousands of mutated rows and recipes: what comes out is right, or one readable line with the right place.

What is right is decided by strict_rows and by those in recipe_rules, which share nothing with the code.
"""

import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
import pytest
import strict_rows
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutated_recipes import FILLED, RECIPES, Mutated
from mutations import PREFERENCES, SUPERVISED, File, files
from recipe_rules import broken_rules

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.reading import conversations, preferences
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.recipe.data_section import Source
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.schema import Recipe

MOST_SECONDS = 5.0
"""of the processor, for a file of rows or a recipe"""
BAR = "0 tracebacks, 0 hangs over 30 s, no invalid one accepted, no valid one refused, the right line"
SPOILED = 25
"""rows of a file"""


class Hang(BaseException):
    pass


@dataclass
class Found:
    """What came of the trials. ``slowest``: seconds."""

    trials: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def text(self) -> str:
        parts = [f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items())]
        return ", ".join([*parts, f"slowest {self.slowest:.1f} s"])

    @contextmanager
    def timed(self, what: object) -> Iterator[None]:
        """Whatever escapes is a failure, and so is what takes too long: it is stopped."""

        def stop(number: int, frame: Any) -> None:
            raise Hang

        before = signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        began = time.process_time()
        try:
            yield
        except (Exception, Hang) as error:  # noqa: BLE001 - whatever comes out is a finding
            self.failures.append(f"{type(error).__name__}: {str(error)[:300]}: {str(what)[:2000]}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
            self.slowest = max(self.slowest, time.process_time() - began)


def drawn(strategy: st.SearchStrategy[Any], examples: int, seed: int, check: Callable[[Any], None]) -> None:
    """Give ``check`` so many examples. It notes what it finds: one that fails shall not end the others."""

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(example: Any) -> None:
        check(example)

    each()


def readable(text: str) -> bool:
    return bool(text) and text.isprintable() and len(text) < 700


def of_pair(made: Any) -> Any:
    return strict_rows.of_messages([*made.prompt, made.chosen, made.rejected], made.tools)


def of_conversation(made: Any) -> Any:
    return strict_rows.of_messages(made.messages, made.tools, made.untrained)


READERS = {
    "supervised rows": (SUPERVISED, conversations, SourceCounts, strict_rows.supervised, of_conversation),
    "preference pairs": (PREFERENCES, preferences, SourceCounts, strict_rows.preference, of_pair),
}


def check_file(what: str, file: File, path: Path, found: Found) -> None:
    _, read, report_of, judge, terms = READERS[what]
    path.write_bytes(file.content)
    report = report_of("")
    got: list[tuple[str, Any]] = []
    with found.timed(file.content):
        got = list(read(Source(path=str(path)), report))
    found.trials += file.spoiled
    lines = file.content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    expected = {f"{path}:{number}": raw for number, raw in enumerate(lines, 1) if raw.strip(b" \t\r")}
    if [place for place, _ in got] != list(expected) or report.read != len(got):
        wrong = set(expected).symmetric_difference(place for place, _ in got)
        found.failures.append(f"{file.form}: other lines than the file's: {sorted(wrong)[:5]}: {file.content[:500]!r}")
        return
    texts = []
    for (place, made), raw in zip(got, expected.values(), strict=True):
        refused = isinstance(made, BadRow | Unusable)
        try:
            judged = judge(raw, file.form)
        except strict_rows.Wrong:
            judged = None
        if refused and not readable(str(made)):
            found.failures.append(f"{place}: not one readable line: {str(made)!r}")
        elif (judged is None) != refused or (judged and judged != terms(made)):
            says = f"refused: {made}" if refused else f"taken as {terms(made)}"
            found.failures.append(f"{place} ({file.form}) {says}; the rules say {judged}: {raw[:1000]!r}")
        else:
            found.outcomes["refused" if refused else "accepted"] += 1
            texts += [] if judged is None else [turn.text for turn in judged.turns]
    missing = [number for number in file.whole if not any(f"a #{number}" in text for text in texts)]
    found.failures += [f"{path}: the untouched row {number} was not accepted" for number in missing]


def fuzz_rows(what: str, rows: int, folder: Path, chance: Random) -> Found:
    found = Found()
    path = folder / "rows.jsonl"
    forms = READERS[what][0]
    for form, kinds in forms.items():
        some = max(1, rows // SPOILED // len(forms))
        strategy = files(form, kinds, SPOILED)
        drawn(strategy, some, chance.randrange(2**32), lambda file: check_file(what, file, path, found))
    return found


@pytest.mark.parametrize("what", READERS)
def test_some_mutated_rows(what: str, tmp_path: Path, chance: Callable[..., Random]) -> None:
    found = fuzz_rows(what, 100, tmp_path, chance(0))
    assert found.failures == []
    assert found.trials == 100
    assert found.outcomes["accepted"] > 80 and found.outcomes["refused"] > 30, found.text()


@pytest.mark.faults
@pytest.mark.parametrize(("what", "rows"), [("supervised rows", 6000), ("preference pairs", 4000)])
def test_mutated_rows(
    what: str,
    rows: int,
    tmp_path: Path,
    count: Callable[[int], int],
    chance: Callable[..., Random],
    faults_row: Callable[..., None],
) -> None:
    found = fuzz_rows(what, count(rows), tmp_path, chance(0))
    assert found.trials > 0
    faults_row(f"mutated {what}", BAR, found.trials, found.failures, found.text())
    assert not found.failures, "\n".join(found.failures[:10])


def check_recipe(mutated: Mutated, found: Found) -> None:
    """In the current folder."""
    Path("r.yaml").write_bytes(mutated.text)
    refused: list[str] = []
    recipe = None
    with found.timed(mutated):
        try:
            recipe = load_recipe("r.yaml", mutated.overrides)
        except InputError as error:
            refused = str(error).split("\n")
    found.trials += 1
    found.outcomes["refused" if refused else "accepted"] += 1
    wrong = wrong_recipe(recipe, mutated) if recipe else wrong_complaints(refused, mutated)
    if wrong:
        found.failures.append(f"{wrong}: {mutated}")


def wrong_complaints(lines: list[str], mutated: Mutated) -> str:
    most = len(re.split(rb"\r\n?|\n", mutated.text))
    for line in lines:
        place = re.match(r"r\.yaml:(?:(\d+):)? |override ", line)
        if not place or not readable(line) or not 1 <= int(place[1] or 1) <= most:
            return f"no readable line with its place: {line!r}"
        if mutated.refused and not re.match(mutated.refused, line):
            return f"not as it must be: {line!r}"
    return f"a right one was refused: {lines}" if mutated.accepted else ""


def wrong_recipe(recipe: Recipe, mutated: Mutated) -> str:
    if mutated.refused:
        return "a wrong one was accepted"
    values = recipe.model_dump()
    if broken := broken_rules(values):
        return f"accepted with {broken}"
    if mutated.holds:
        loc, wanted = mutated.holds
        value: Any = values
        for part in loc.split("."):
            value = value[int(part) if isinstance(value, list) else part]
        read = float(wanted) if isinstance(value, float) and isinstance(wanted, int) else wanted
        if value != read and loc.rpartition(".")[2] not in FILLED:
            return f"{loc} holds {value!r}"
    if Recipe.model_validate(values) != recipe:
        return "another recipe when validated again"
    Path("again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    return "" if load_recipe("again.yaml") == recipe else "another recipe when written and read"


def fuzz_recipes(number: int, folder: Path, chance: Random, monkeypatch: pytest.MonkeyPatch) -> Found:
    monkeypatch.chdir(folder)
    Path("rows.jsonl").write_text("{}\n")
    found = Found()
    for strategy in RECIPES:
        some = max(1, number // len(RECIPES))
        drawn(strategy, some, chance.randrange(2**32), lambda mutated: check_recipe(mutated, found))
    return found


def test_some_mutated_recipes(tmp_path: Path, chance: Callable[..., Random], monkeypatch: pytest.MonkeyPatch) -> None:
    found = fuzz_recipes(80, tmp_path, chance(0), monkeypatch)
    assert found.failures == []
    assert found.trials == 80
    assert found.outcomes["accepted"] > 5 and found.outcomes["refused"] > 30, found.text()


@pytest.mark.faults
def test_mutated_recipes(
    tmp_path: Path,
    count: Callable[[int], int],
    chance: Callable[..., Random],
    faults_row: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = fuzz_recipes(count(2000), tmp_path, chance(0), monkeypatch)
    assert found.trials > 0
    faults_row("mutated recipes", BAR, found.trials, found.failures, found.text())
    assert not found.failures, "\n".join(found.failures[:10])
