"""A bad input given to the command as a user would, and what must be true of the refusal."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from transformers import OlmoHybridForCausalLM

from hybrid_ft import cli
from hybrid_ft.hybrid_model.checkpoint.config import BUNDLED

MOST_SECONDS = 10.0
RECIPE = "model: {path: tiny}\ndata: {sources: [{path: rows.jsonl}], max_length: 256}\ntrain: {steps: 1}\noutput: run\n"
PAIRS = RECIPE.replace("rows.jsonl", "pairs.jsonl") + "dpo: {pairs_per_step: 2}\n"
JUDGED = RECIPE.replace("rows.jsonl", "judged.jsonl") + "kto: {rows_per_step: 2}\n"
REWARD = PAIRS.replace("dpo:", "reward:")
OF_MODEL = RECIPE.replace("tiny", "model")

ROW = {"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]}
JUDGEMENT = {"prompt": "Name a colour.", "completion": "Blue.", "label": True}
PAIR = {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Seven."}

Content = str | bytes | Callable[[Path], None]


def lines(*rows: Any) -> str:
    """JSON lines; a row given as a text is a line as it stands."""
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@dataclass
class Case:
    """``says``: what stands in the complaint, its place first. ``files``: what lies in the folder beside good rows.

    ``model`` damages a copy of the bundled base, which lies in ``model/``. ``loads``: only the weights themselves show
    the fault. ``accepted``: no fault after all, and ``says`` stands on the screen.
    """

    name: str
    says: tuple[str, ...]
    command: tuple[str, ...] = ("sft", "r.yaml")
    recipe: Content = RECIPE
    files: dict[str, Content] = field(default_factory=dict)
    model: Callable[[Path], None] | None = None
    status: tuple[int, ...] = (2,)
    complaints: int = 1
    loads: bool = False
    accepted: bool = False
    stdin: str = "hello\n"


def write(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str | bytes):
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    else:
        content(path)


def there(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        found[str(path.relative_to(folder))] = (state.st_size, 0 if path.is_dir() else state.st_mtime_ns)
    return found


@dataclass
class Outcome:
    status: int | str
    out: str
    err: str
    seconds: float
    loaded: bool
    changed: list[str]


def run(arguments: Iterable[str], folder: Path, stdin: str = "") -> Outcome:
    """The command in this process with ``folder`` as the current one. A traceback stands as the status."""
    before, was = there(folder), os.getcwd()
    out, err, loaded = io.StringIO(), io.StringIO(), []
    real = OlmoHybridForCausalLM.from_pretrained

    def spy(*args: Any, **kwargs: Any) -> Any:
        loaded.append(args)
        return real(*args, **kwargs)

    os.chdir(folder)
    began = os.times()
    try:
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            mock.patch.object(sys, "stdin", io.StringIO(stdin)),
            mock.patch.object(OlmoHybridForCausalLM, "from_pretrained", spy),
        ):
            status: int | str = cli.main(list(arguments))
    except BaseException as error:  # noqa: BLE001 - whatever comes out is a finding
        status = f"{type(error).__name__}: {str(error)[:300]}"
    # of the processor, which beside other work comes to it late; what only waits is given a minute
    ended = os.times()
    seconds = max(sum(ended[:4]) - sum(began[:4]), (ended.elapsed - began.elapsed) / 6)
    moved = os.getcwd() != str(folder)
    os.chdir(was)
    after = there(folder)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return Outcome(status, out.getvalue(), err.getvalue(), seconds, bool(loaded), changed + ["(cwd)"] * moved)


def tried(case: Case, folder: Path) -> Outcome:
    folder.mkdir()
    shipped = {
        "rows.jsonl": lines(ROW, ROW),
        "pairs.jsonl": lines(PAIR, PAIR),
        "judged.jsonl": lines(JUDGEMENT, JUDGEMENT),
    }
    for name, content in shipped.items():
        write(folder / name, content)
    write(folder / "r.yaml", case.recipe)
    for name, content in case.files.items():
        write(folder / name, content)
    if case.model:
        shutil.copytree(BUNDLED, folder / "model")
        case.model(folder / "model")
    return run(case.command, folder, case.stdin)


def faults(case: Case, folder: Path) -> list[str]:
    """What is wrong with how a case is treated, each a line that begins with its name; none where all is well."""
    got = tried(case, folder)
    told = got.err.splitlines()
    if case.accepted:
        checks = [(got.status == 0, f"status {got.status}: {got.err[:300]}")]
        checks += [(say in got.out, f"does not say {say!r}: {got.out[-400:]!r}") for say in case.says]
        return [f"{case.name}: {text}" for good, text in checks if not good]
    checks = [
        (got.status in case.status, f"status {got.status}: {got.err[:300]}"),
        (bool(told) and all(line.startswith("error: ") for line in told), f"not one error: line each: {told}"),
        (len(told) == case.complaints, f"{len(told)} lines, not {case.complaints}: {told}"),
        (
            all(line.isprintable() and len(line) < 700 for line in told),
            f"not readable: {[line[:900] for line in told]}",
        ),
        (got.seconds < MOST_SECONDS, f"{got.seconds:.1f} s"),
        (not got.changed, f"left behind {got.changed}"),
        (case.loads or not got.loaded, "the weights were loaded first"),
    ]
    checks += [(say in got.err, f"does not say {say!r}: {got.err[:400]!r}") for say in case.says]
    return [f"{case.name}: {text}" for good, text in checks if not good]
