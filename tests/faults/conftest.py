"""The battery of faults: how much of it runs, what it runs on, and the table at its end.

HYBRID_FT_FAULTS (0.1) is the share of the full counts, HYBRID_FT_FAULTS_SEED (0) what the random moments, places and
sizes are drawn from, HYBRID_FT_FAULTS_OUT a file that the table's rows are appended to as JSON lines.
"""

import json
import math
import os
import random
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # pytest imports a test file by its path, and so not its neighbours

from children import ForkServer
from harness import Harness, Job

SHARE = float(os.environ.get("HYBRID_FT_FAULTS", "0.1"))
SEED = os.environ.get("HYBRID_FT_FAULTS_SEED", "0")
ROWS = pytest.StashKey[list[dict[str, Any]]]()

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LORA = "{targets: all-linear, rank: 4, alpha: 8, dropout: 0.1}"
PAIR_LORA = "{targets: all-linear, rank: 4, alpha: 8}"


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    place = tmp_path_factory.mktemp("faults")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    server = ForkServer(place / "server.err")
    yield Harness(place, server, max(1, (os.cpu_count() or 1) // workers))
    server.close()


@pytest.fixture(scope="session")
def every_job(harness: Harness, tiny_base: Path) -> dict[str, Job]:
    return make_jobs(harness.place / "jobs", tiny_base)


@pytest.fixture(scope="session")
def jobs(every_job: dict[str, Job]) -> dict[str, Job]:
    """Of SFT and DPO, which share their seams with the other stages."""
    return {name: job for name, job in every_job.items() if job.command in ("sft", "dpo")}


@pytest.fixture(scope="session")
def steady_jobs(harness: Harness, steady_base: Path) -> dict[str, Job]:
    """The same on a base without dropout."""
    return make_jobs(harness.place / "steady", steady_base)


def make_jobs(place: Path, base: Path) -> dict[str, Job]:
    """sft-full, -weights, -stream and -lora, dpo-full, -stream and -lora, kto-lora, reward-full, -stream and -lora:
    24 rows, 8 steps over two to three passes, a checkpoint at every step."""
    chance = random.Random(0)
    place.mkdir()
    sft, dpo, weighted = [], [], []
    for index in range(24):
        letter = chance.choice(LETTERS)
        question = "".join(chance.choices(LETTERS, k=chance.randint(4, 16)))
        user = {"role": "user", "content": f"{question} {letter}?"}
        sft.append({"messages": [user, {"role": "assistant", "content": letter * chance.randint(1, 9)}]})
        weighted.append(sft[-1] | {"weight": (0.1, 1.0, None)[index % 3]})
        answers = [{"role": "assistant", "content": word * chance.randint(1, 6)} for word in (letter, "x")]
        dpo.append({"chosen": [user, answers[0]], "rejected": [user, answers[1] | {"content": f"{index} no"}]})
    for name, rows in (("rows", sft), ("weighted", weighted), ("pairs", dpo)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = f"model: {{path: {base}, lora: %s}}\ndata: {{sources: [{{path: %s.jsonl}}], max_length: 96}}\n"
    train = "train: {steps: 8, save_every: 1, keep: 2, learning_rate: 1.0e-2, batch_tokens: %d, batch_size: 6}\n"
    texts = {
        "sft-full": head % ("null", "rows") + train % 200,
        "sft-weights": head % ("null", "weighted") + train % 200,
        "sft-stream": head.replace(
            "max_length", "streaming: true, shuffle_buffer: 10, eval: {fraction: 0.1}, max_length"
        )
        % ("null", "rows")
        + train % 200,
        "sft-lora": head % (LORA, "rows") + train % 200,
        "dpo-full": head % ("null", "pairs") + train % 400 + "dpo: {pairs_per_step: 7}\n",
        "dpo-lora": head % (PAIR_LORA, "pairs") + train % 400 + "dpo: {pairs_per_step: 7}\n",
        "kto-lora": head % (PAIR_LORA, "pairs") + train % 400 + "kto: {rows_per_step: 12}\n",
        "reward-full": head % ("null", "pairs") + train % 400 + "reward: {pairs_per_step: 7}\n",
        "reward-lora": head % (PAIR_LORA, "pairs") + train % 400 + "reward: {pairs_per_step: 7}\n",
    }
    made = {}
    stream = "streaming: true, shuffle_buffer: 10, eval: {fraction: 0.1}, max_length"
    for name in ("dpo", "reward"):
        texts[f"{name}-stream"] = texts[f"{name}-full"].replace("max_length", stream)
    for name, text in texts.items():
        file = place / f"{name}.yaml"
        file.write_text(text)
        made[name] = Job(name, name.partition("-")[0], file)
    return made


@pytest.fixture
def count() -> Callable[[int], int]:
    """``count(n)``: how many of ``n`` trials run, at least one."""
    return lambda full: max(1, math.ceil(full * SHARE))


@pytest.fixture
def some(count: Callable[[int], int], chance: Callable[..., random.Random]) -> Callable[[Sequence[Any]], list[Any]]:
    """``some(trials)``: those that run, in their order."""

    def choose(trials: Sequence[Any]) -> list[Any]:
        chosen = chance("some").sample(range(len(trials)), min(len(trials), count(len(trials))))
        return [trials[index] for index in sorted(chosen)]

    return choose


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> Callable[..., random.Random]:
    """``chance(trial)``: what a trial of this test draws from, always the same for the same seed."""
    return lambda trial: random.Random(f"{SEED} {request.node.name} {trial}")


@pytest.fixture
def faults_row(request: pytest.FixtureRequest) -> Callable[[str, str, int, Sequence[str], str], None]:
    """``faults_row(test, bar, trials, failures, more)``: put a line in the table, whether any failed or none."""
    began = time.monotonic()

    def put(test: str, bar: str, trials: int, failures: Sequence[str], more: str = "") -> None:
        found = f"{trials - len(failures)} of {trials}" + (f"; {more}" if more else "")
        row = {"test": test, "bar": bar, "found": found, "failed": len(failures)}
        row |= {"seconds": round(time.monotonic() - began), "share": SHARE, "seed": SEED, **made_with()}
        request.config.stash.setdefault(ROWS, []).append(row)

    return put


def made_with() -> dict[str, Any]:
    names = ("hybrid-ft", "torch", "transformers", "trl", "peft")
    return {"date": datetime.now(UTC).date().isoformat(), "versions": {name: version(name) for name in names}}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands its rows to the process that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = session.config.stash.get(ROWS, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash.setdefault(ROWS, []).extend(getattr(node, "workeroutput", {}).get("faults", []))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = sorted(config.stash.get(ROWS, []), key=lambda row: row["test"])
    if not rows or hasattr(config, "workeroutput"):  # a worker's are written where all are
        return
    first = rows[0]
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    terminalreporter.section("faults")
    terminalreporter.write_line(f"{first['date']}  {versions}")
    terminalreporter.write_line(f"share {first['share']:g} of the full counts, seed {first['seed']}")
    for line in table([(row["test"], row["bar"], row["found"] + (" FAILED" if row["failed"] else "")) for row in rows]):
        terminalreporter.write_line(line)
    if file := os.environ.get("HYBRID_FT_FAULTS_OUT"):
        with open(file, "a", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)


def table(rows: list[tuple[str, str, str]]) -> Iterator[str]:
    """Three columns in 110 characters; a cell that is too long goes on in the next line."""
    widths = (46, 36, 24)
    rows = [("test", "bar", "found"), tuple("-" * width for width in widths), *rows]
    for row in rows:
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
        for index in range(max(map(len, cells))):
            parts = (cell[index] if index < len(cell) else "" for cell in cells)
            yield "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
