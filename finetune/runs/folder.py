"""The run folder: its recipe, whether it can resume, its record.

``run.json`` holds the run's identity: every key of the recipe that decides what is trained, the sha256 of every local
file the recipe names, the code and its versions. The same command started again goes on only when the identity is the
same, or when its user accepts what has changed; the number of processes may be another one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs import device, lock
from hybrid_ft.finetune.runs.atomic import write_text
from hybrid_ft.finetune.runs.identity import short_digest
from hybrid_ft.finetune.runs.processes import Processes

LENGTH = ("train.epochs", "train.steps")
"""The keys that an extension may change."""

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Recipe


class RunFolder:
    """``recipe.yaml``, ``run.json``, ``metrics.jsonl``, ``answers-*.jsonl``, ``report.html``, ``checkpoints/`` and the
    result."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.processes = Processes()
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.record: dict[str, Any] = {}
        self.known_from = f"output: {self.path}"
        """where the record lies, as a refusal names it"""

    @property
    def finished(self) -> bool:
        return bool(self.record.get("finished"))

    @property
    def begun(self) -> bool:
        return bool(self.record)

    @contextmanager
    def held(self, processes: Processes | None = None) -> Iterator[RunFolder]:
        """Hold the folder against other runs, and read what is known of this one. Of several processes number 0 holds
        it, and it alone writes.

        What was made for it is taken away again if the run has not begun when the block ends. Raises InputError for a
        place that cannot be written, that holds something else, or that another run holds.
        """
        self.processes = processes or self.processes
        if not self.processes.main:
            self.processes.wait()
            if not self.path.is_dir():
                raise InputError(
                    f"output: process {self.processes.rank} sees no folder {self.path}; it must lie on a disk that all "
                    "processes share"
                )
            self._read()
            yield self
            return
        with lock.held(self.path):
            self._read()
            self.processes.wait()
            yield self

    def begin(self, stage: str, recipe: Recipe, identity: dict[str, Any]) -> None:
        """Write the first files of a new run. With the first of them it has begun, whenever the process ends."""
        self.note(
            stage=stage,
            identity=identity,
            processes=self.processes.count,
            device=device.name(),
            started=_now(),
            finished=None,
        )
        self.complete(recipe)

    def complete(self, recipe: Recipe) -> None:
        """What ``begin`` did not come to."""
        if self.processes.main:
            self.checkpoints.mkdir(exist_ok=True)
            if not (self.path / "recipe.yaml").exists():
                write_text(self.path / "recipe.yaml", recipe.to_yaml())

    def accept(self, changed: list[str], recipe: Recipe, identity: dict[str, Any]) -> None:
        """Go on with what has changed since the run began, as its user has asked for, and keep an account of it. A
        finished run is then no longer finished."""
        was = self.record["identity"]
        entry = {"at": _now(), "changed": {key: [was.get(key), identity.get(key)] for key in changed}}
        if self.finished:
            entry["finished"] = self.record["finished"]
        self.renew(recipe)
        self.note(identity=identity, accepted=[*self.record.get("accepted", []), entry], finished=None)

    def renew(self, recipe: Recipe) -> None:
        """``recipe.yaml`` anew."""
        if self.processes.main:
            write_text(self.path / "recipe.yaml", recipe.to_yaml())

    def note(self, **entries: Any) -> None:
        """Add to ``run.json``."""
        self.record |= entries
        if self.processes.main:
            write_text(self.path / "run.json", json.dumps(self.record, indent=1, ensure_ascii=False) + "\n")

    def finish(self, **entries: Any) -> None:
        self.note(finished={"at": _now(), **entries})

    def check(self, identity: dict[str, Any], accept: bool = False, extend: bool = False) -> list[str]:
        """What differs from the identity with which the run began; ``identity`` may lack what ``prepare`` makes.

        ``accept``: differences are wanted. ``extend``: another length is wanted. Nothing of a finished run is trained
        anew: there, unless it is to become longer, the program may differ and the recipe may not. Raises InputError.
        """
        known = self.record.get("identity", identity)
        keys = sorted(known.keys() | identity.keys())
        changed = [key for key in keys if known.get(key) != identity.get(key) and (key in identity or "." in key)]
        length = [key for key in changed if extend and key in LENGTH]
        if self.finished and not length:
            refused = [key for key in changed if key != "code" and not key.startswith("version.")]
        else:
            refused = [] if accept else [key for key in changed if key not in length]
        if not refused:
            return changed
        first = refused[0]
        more = f" (also changed: {', '.join(refused[1:])})" if len(refused) > 1 else ""
        raise InputError(
            f"{self.known_from} belongs to another run: {first} was {short_digest(known.get(first))}, "
            f"is {short_digest(identity.get(first))}{more}; {self._ways_out(refused, bool(length))}"
        )

    def _ways_out(self, refused: list[str], longer: bool) -> str:
        another = f"give another {self.known_from.partition(':')[0]}"
        undo = f"{another}, undo the change, or"
        if not self.finished or longer:
            return f"{undo} go on with it all the same by --accept-changes"
        if all(key in LENGTH for key in refused):
            return f"it is finished: {another}, or take it further by --extend"
        return f"it is finished: {undo} take it further by more train.steps --extend --accept-changes"

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will take again."""
        if self.metrics.exists() and self.processes.main:
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text(self.metrics, "".join(kept))

    def _read(self) -> None:
        file = self.path / "run.json"
        if not file.exists():
            foreign = sorted(entry.name for entry in self.path.iterdir() if _holds_something(entry))
            if foreign:
                holds = f"holds {foreign[0]} and is not a run's folder (it has no run.json)"
                raise InputError(f"output: {self.path} {holds}; give another output")
            return
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            fine = isinstance(record["identity"], dict)
        except (ValueError, KeyError, TypeError):
            fine = False
        if not fine:
            raise InputError(f"output: {file} is damaged; restore it, or give another output")
        self.record = record


def _holds_something(entry: Path) -> bool:
    """What a start that was killed before the run began leaves is hidden or empty."""
    return not entry.name.startswith(".") and not (entry.is_dir() and not any(entry.iterdir()))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
