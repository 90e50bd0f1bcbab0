"""The folder of one run: to whom it belongs, whether it may go on, and what is known of it.

``run.json`` holds the run's identity: every key of the recipe that decides what is trained, the sha256 of every local
file the recipe names, the code and its versions, and how many processes train. The same command started again goes on
only when the identity is the same, or when its user accepts what has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from hybrid_ft.errors import BAD_INPUT, STORAGE, InputError
from hybrid_ft.finetune.recipe.shipped import PACKAGE_ROOT
from hybrid_ft.finetune.runs import device, storage
from hybrid_ft.finetune.runs.checkpoints import sha256, write_text
from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.hybrid_model.checkpoint.config import BUNDLED
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import TINY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.data.prepare import Prepared
    from hybrid_ft.finetune.recipe.schema import Recipe

FREE = (
    "output",
    "train.save_every",
    "train.keep",
    "train.log_every",
    "train.trackers",
    "train.loader_workers",
    "evaluate.every",
)
"""Recipe keys that may change between two starts of a run: they do not touch the weights. (``evaluate.every`` does
where the best checkpoint is the result.)"""

_LOCK = ".lock"
_CODE = ("kernels", "hybrid_model", "finetune")
_PLACES = ("path", "tokenizer", "chat_template", "file")


class RunFolder:
    """``recipe.yaml``, ``run.json``, ``metrics.jsonl``, ``answers-*.jsonl``, ``checkpoints/`` and the result."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.processes = Processes()
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.record: dict[str, Any] = {}

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
        made = self._make()
        try:
            with self._lock():
                self._read()
                self.processes.wait()
                yield self
        finally:
            if not self.begun:
                _take_away(made)

    def begin(self, stage: str, recipe: Recipe, identity: dict[str, Any]) -> None:
        """Write the first files of a new run. With the first of them it has begun, whenever the process ends."""
        self.note(stage=stage, identity=identity, device=device.name(), started=_now(), finished=None)
        self.complete(recipe)

    def complete(self, recipe: Recipe) -> None:
        """What ``begin`` did not come to."""
        if self.processes.main:
            self.checkpoints.mkdir(exist_ok=True)
            if not (self.path / "recipe.yaml").exists():
                write_text(self.path / "recipe.yaml", recipe.to_yaml())

    def accept(self, changed: list[str], recipe: Recipe, identity: dict[str, Any]) -> None:
        """Go on with what has changed since the run began, as its user has asked for, and keep an account of it."""
        was = self.record["identity"]
        entry = {"at": _now(), "changed": {key: [was.get(key), identity.get(key)] for key in changed}}
        if self.processes.main:
            write_text(self.path / "recipe.yaml", recipe.to_yaml())
        self.note(identity=identity, accepted=[*self.record.get("accepted", []), entry])

    def note(self, **entries: Any) -> None:
        """Add to ``run.json``."""
        self.record |= entries
        if self.processes.main:
            write_text(self.path / "run.json", json.dumps(self.record, indent=1, ensure_ascii=False) + "\n")

    def finish(self, **entries: Any) -> None:
        self.note(finished={"at": _now(), **entries})

    def check(self, identity: dict[str, Any], accept: bool = False) -> list[str]:
        """What differs from the identity with which the run began; ``identity`` may lack what ``prepare`` makes.

        Raises InputError for a difference that is not accepted.
        """
        known = self.record.get("identity", identity)
        keys = sorted(known.keys() | identity.keys())
        changed = [key for key in keys if known.get(key) != identity.get(key) and (key in identity or "." in key)]
        if not changed or accept:
            return changed
        first = changed[0]
        more = f" (also changed: {', '.join(changed[1:])})" if len(changed) > 1 else ""
        raise InputError(
            f"output: {self.path} belongs to another run: {first} was {_short(known.get(first))}, "
            f"is {_short(identity.get(first))}{more}; give another output, undo the change, or go on with it all the "
            "same by --accept-changes"
        )

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will take again."""
        if self.metrics.exists() and self.processes.main:
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text(self.metrics, "".join(kept))

    def _make(self) -> list[Path]:
        """Make the folder and its lock file; returns what was not there, the deepest first."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"output: {self.path} is a file; name a folder")
        missing = [place for place in (self.path / _LOCK, self.path, *self.path.parents) if not place.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with open(self.path / _LOCK, "a"):
                pass
        except OSError as error:
            _take_away(missing)
            reason = f"cannot write in {self.path} ({error.strerror})"
            status = STORAGE if storage.no_room(error) else BAD_INPUT
            raise InputError(f"output: {reason}; give another output", status) from error
        return missing

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.path / _LOCK, "a") as file:
            try:
                # not flock, which the loader's workers would inherit and hold for a while after this process is killed
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                reason = f"another process is at work in {self.path}"
                raise InputError(f"output: {reason}; wait for it, or stop it") from error
            yield

    def _read(self) -> None:
        file = self.path / "run.json"
        if not file.exists():
            foreign = sorted(entry.name for entry in self.path.iterdir() if _holds_something(entry))
            if foreign:
                holds = f"holds {foreign[0]} and is no run's folder (it has no run.json)"
                raise InputError(f"output: {self.path} {holds}; give another output")
            return
        try:
            self.record = json.loads(file.read_text(encoding="utf-8"))
            assert isinstance(self.record["identity"], dict)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise InputError(f"output: {file} is damaged; restore it, or give another output") from error


def run_identity(recipe: Recipe, processes: Processes) -> dict[str, Any]:
    """All that decides the weights and is known before anything heavy is loaded."""
    known = {f"version.{name}": version(name) for name in LIBRARIES}
    return recipe_identity(recipe) | known | {"code": _code(), "processes": processes.count}


def recipe_identity(recipe: Recipe) -> dict[str, Any]:
    """Dotted recipe keys and their values, without ``FREE``; a local file stands as the sha256 of what lies there."""
    free = tuple(key for key in FREE if key != "evaluate.every" or not recipe.evaluate.load_best)
    identity = {key: value for key, value in _flat(recipe.model_dump()) if not key.startswith(free)}
    if identity["model.path"] == TINY:
        identity["model.path"] = str(BUNDLED)
    return with_contents(identity, weights=not recipe.model.from_scratch)


def with_contents(values: dict[str, Any], weights: bool = True) -> dict[str, Any]:
    """Dotted keys and their values, where a local file or folder stands as the sha256 of what lies there.

    ``weights``: those of a model's folder count too.
    """
    identity = dict(_flat(values))
    for key, value in identity.items():
        if key.rpartition(".")[2] in _PLACES and isinstance(value, str) and os.path.exists(value):
            identity[key] = _content(Path(value), weights)
    return identity


def prepared_identity(prepared: Prepared, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What the recipe's files became: the tokenizer with its template, and the tokens and labels of every row."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    text = f"{words}\n{tokenizer.chat_template}"
    return {
        "tokenizer": "sha256:" + hashlib.sha256(text.encode()).hexdigest(),
        "rows": "sha256:" + _rows_digest(prepared),
    }


LIBRARIES = ("hybrid-ft", "torch", "transformers", "trl", "peft", "accelerate")


def _code() -> str:
    """Of this package as it lies here: a version number stays while its code is worked on."""
    total = hashlib.sha256()
    for folder in _CODE:
        for file in sorted((PACKAGE_ROOT / folder).rglob("*.py")):
            total.update(f"{file.relative_to(PACKAGE_ROOT).as_posix()}\0".encode() + file.read_bytes())
    return "sha256:" + total.hexdigest()


def _rows_digest(prepared: Prepared) -> str:
    total = hashlib.sha256()
    for dataset, packs in ((prepared.train, prepared.packs), (prepared.eval, prepared.eval_packs)):
        total.update(json.dumps(packs).encode())
        for table in dataset.with_format("arrow").iter(10_000) if dataset else ():
            for column in ("input_ids", "labels"):
                lists = table[column].combine_chunks()
                total.update(pc.list_value_length(lists).to_numpy())
                total.update(lists.flatten().to_numpy())
    return total.hexdigest()


def _content(place: Path, weights: bool) -> str:
    """sha256 of a file, or of the files of a model or tokenizer folder that decide what is loaded from it."""
    kinds = ("*.json", "*.jinja", "*.safetensors") if weights else ("*.json", "*.jinja")
    files = (
        [place] if place.is_file() else sorted(file for kind in kinds for file in place.glob(kind) if file.is_file())
    )
    try:
        sums = sha256(files)
    except OSError as error:
        raise InputError(f"{error.filename or place}: cannot be read ({error.strerror or error})") from error
    named = "".join(f"{file.name}\0{sums[file]}\n" for file in files) if place.is_dir() else sums[place]
    return "sha256:" + (hashlib.sha256(named.encode()).hexdigest() if place.is_dir() else named)


def _holds_something(entry: Path) -> bool:
    """What a start that was killed before the run began leaves is hidden or empty."""
    return not entry.name.startswith(".") and not (entry.is_dir() and not any(entry.iterdir()))


def _take_away(made: list[Path]) -> None:
    with suppress(OSError):
        for place in made:
            # a link that leads nowhere counts as missing too, and is its owner's
            place.unlink(missing_ok=True) if place.name == _LOCK else place.rmdir()


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items:
        yield prefix, value
    for key, inner in items:
        yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return f"{text[:19]}..." if text.startswith("sha256:") else text


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
