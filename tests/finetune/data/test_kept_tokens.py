"""Kept tokens are the fresh ones, row for row and line for line, or they are made anew."""

import io
import json
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hybrid_ft.errors import InputError
from hybrid_ft.finetune import disk
from hybrid_ft.finetune.data import kept_tokens, source_rows, sources_in_tokens
from hybrid_ft.finetune.data.prepare import Prepared, prepare
from hybrid_ft.finetune.data.report.view import draw
from hybrid_ft.finetune.recipe.schema import Recipe


def mixed_rows() -> list[dict[str, Any]]:
    """Rows that leave something in every corner of the account."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"question {n}", "completion": f"answer {n}", "id": n, "system": None} for n in range(300)
    ]
    rows[3]["completion"] = None
    rows[5]["completion"] = "<|im_end|> as text"
    rows[7]["completion"] = "\n\nfirst a line end"
    rows[9] = rows[8]
    rows[11]["completion"] = "fox " * 400
    rows[260]["prompt"] = ""
    return rows


def screen(prepared: Prepared) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="truecolor")
    draw(prepared.report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue() + "\n".join(prepared.report.summary()) + json.dumps(prepared.report.as_dict())


def everything(prepared: Prepared) -> tuple[Any, ...]:
    held_out = prepared.eval.to_list() if prepared.eval else None
    return screen(prepared), prepared.train.to_list(), held_out, prepared.packs, prepared.eval_packs


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sources that were read and encoded."""
    made: list[int] = []
    real = sources_in_tokens.tokenize_source

    def spy(*args: Any, **kwargs: Any) -> Any:
        made.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(sources_in_tokens, "tokenize_source", spy)
    return made


@pytest.fixture
def made(write_rows: Callable[..., Path], recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Recipe]:
    def of(**data: Any) -> Recipe:
        usual = {"on_bad_row": "skip", "max_dropped": 0.5, "max_length": 64, "eval": {"fraction": 0.1}}
        return recipe(write_rows(mixed_rows()), **usual | {"cache": str(tmp_path / "cache")} | data)

    return of


def entries(folder: Path) -> list[Path]:
    return sorted(place for place in folder.iterdir() if not place.name.startswith("."))


STAGES: dict[str, dict[str, Any]] = {
    "rows": {"completion": "answer"},
    "pairs": {"chosen": "good", "rejected": "bad"},
    "judged": {"completion": "answer", "label": True},
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_hit_is_the_miss(
    stage: str, write_rows: Callable[..., Path], tmp_path: Path, tokenizer: Any, encodings: list[int]
) -> None:
    rows = mixed_rows()
    for n, row in enumerate(rows):
        row.update({key: f"{text} {n}" if isinstance(text, str) else text for key, text in STAGES[stage].items()})
        if stage == "judged" and n % 3 == 0:
            row["label"] = False
    rows[1] = {"prompt": 5}
    sources = [{"path": str(write_rows(rows))}, {"path": str(write_rows(rows[20:30], "more.jsonl")), "repeat": 2}]
    usual = {"on_bad_row": "skip", "max_dropped": 0.5, "max_length": 64, "eval": {"fraction": 0.1}, "sources": sources}
    raw: dict[str, Any] = {"model": {"path": "tiny"}}
    raw |= {"pairs": {"dpo": {}}, "judged": {"kto": {}}}.get(stage, {})

    def start(cache: Any) -> tuple[Any, ...]:
        return everything(prepare(Recipe.model_validate(raw | {"data": usual | {"cache": cache}}), tokenizer))

    fresh = start(False)
    first = start(str(tmp_path / "cache"))
    assert len(encodings) == 4 and len(entries(tmp_path / "cache")) == 2
    second = start(str(tmp_path / "cache"))
    assert len(encodings) == 4
    assert fresh == first == second


def test_rows_in_the_mix_are_chosen_anew(made: Callable[..., Recipe], tokenizer: Any, encodings: list[int]) -> None:
    """Seed, shares and held-out rows are no part of the key."""
    prepare(made(), tokenizer)
    other = {"seed": 4, "eval": {"count": 20}, "max_dropped": 0.4}
    kept = everything(prepare(made(**other), tokenizer))
    assert len(encodings) == 1
    assert kept == everything(prepare(made(cache=False, **other), tokenizer))


def test_what_stops_a_run_is_never_kept(made: Callable[..., Recipe], tokenizer: Any, tmp_path: Path) -> None:
    said = set()
    for _ in range(2):
        with pytest.raises(InputError) as error:
            prepare(made(on_bad_row="error"), tokenizer)
        said.add(str(error.value))
    assert len(said) == 1 and "completion is null" in said.pop()
    assert not (tmp_path / "cache").exists()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


DAMAGE = {"flipped": flip, "cut": cut, "gone": lambda file: file.unlink(), "empty": lambda file: os.truncate(file, 0)}


FILES = ["rows.arrow", "account.json", "manifest.json", "hash-asked.npy", "length.npy"]


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        # each file once, each damage at least once
        pytest.param(damage, file, marks=[] if at % len(DAMAGE) == kind else pytest.mark.slow)
        for kind, damage in enumerate(DAMAGE)
        for at, file in enumerate(FILES)
    ],
)
def test_a_damaged_entry_is_made_anew(
    damage: str,
    file: str,
    made: Callable[..., Recipe],
    tokenizer: Any,
    tmp_path: Path,
    encodings: list[int],
    capfd: Any,
) -> None:
    wanted = everything(prepare(made(), tokenizer))
    (entry,) = entries(tmp_path / "cache")
    DAMAGE[damage](entry / file)
    capfd.readouterr()
    assert everything(prepare(made(), tokenizer)) == wanted
    if (damage, file) != ("flipped", "manifest.json"):  # a letter of it that nothing reads may be another
        assert len(encodings) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "kept tokens are damaged" in line and "made anew" in line
    count = len(encodings)
    assert everything(prepare(made(), tokenizer)) == wanted and len(encodings) == count


class Forked:
    """Another process that prepares. It says on ``out`` when it stands in the middle, and goes on when it is told."""

    def __init__(self, recipe: Recipe, tokenizer: Any) -> None:
        (out, its_out), (its_in, into) = os.pipe(), os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, from Python 3.12 on
            self.pid = os.fork()
        if self.pid == 0:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are the parent's, which a fork does not have
            sys.stderr = open(its_out, "w", buffering=1)  # noqa: SIM115
            real = source_rows.SourceRows.batches

            def batches(rows: Any, items: Any) -> Any:
                for batch in real(rows, items):
                    yield batch
                    print("middle", file=sys.stderr)
                    os.read(its_in, 1)

            source_rows.SourceRows.batches = batches  # type: ignore[method-assign]
            try:
                print(len(prepare(recipe, tokenizer).train), file=sys.stderr)
            finally:
                sys.stderr.flush()
                os._exit(0)
        os.close(its_out)
        os.close(its_in)
        self.out, self._into = open(out), into  # noqa: SIM115

    def line(self) -> str:
        return self.out.readline().strip()

    def go_on(self) -> None:
        os.write(self._into, b"x" * 100)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.out.close()
        os.close(self._into)


@pytest.fixture
def forked(made: Callable[..., Recipe], tokenizer: Any) -> Iterator[Callable[[], Forked]]:
    began: list[Forked] = []
    recipe = made()

    def start() -> Forked:
        began.append(Forked(recipe, tokenizer))
        return began[-1]

    yield start
    for process in began:
        process.end()


def test_nothing_half_made_is_taken_for_whole(
    forked: Callable[[], Forked], made: Callable[..., Recipe], tokenizer: Any, tmp_path: Path, encodings: list[int]
) -> None:
    cache, process = tmp_path / "cache", forked()
    assert process.line() == "middle"
    assert entries(cache) == [] and len(list(cache.glob(".unfinished-*"))) == 1
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    (left,) = cache.glob(".unfinished-*")
    left.rename(left.with_name(left.name.replace(str(process.pid), "999999999")))  # a zombie still is a process
    kept = everything(prepare(made(), tokenizer))
    assert kept == everything(prepare(made(cache=False), tokenizer)) and len(encodings) == 2
    assert [place.name for place in cache.iterdir()] == [entries(cache)[0].name]  # what it had left behind is gone


def test_of_two_that_want_the_same_one_waits(
    forked: Callable[[], Forked], tmp_path: Path, made: Callable[..., Recipe], tokenizer: Any
) -> None:
    first = forked()
    assert first.line() == "middle"
    second = forked()
    assert second.line() == "another process is preparing the same rows; waiting for it"
    first.go_on()
    rows = second.line()  # and it has not stood in the middle of its own
    assert first.out.read().split()[-1] == rows
    assert len(entries(tmp_path / "cache")) == 1
    assert len(prepare(made(), tokenizer).train) == int(rows)


def test_who_waits_prepares_where_the_first_is_killed(
    forked: Callable[[], Forked], tmp_path: Path, made: Callable[..., Recipe], tokenizer: Any, encodings: list[int]
) -> None:
    first = forked()
    assert first.line() == "middle"
    second = forked()
    assert second.line() == "another process is preparing the same rows; waiting for it"
    os.kill(first.pid, signal.SIGKILL)
    assert second.line() == "middle"  # of its own, from the first row on
    second.go_on()
    assert second.out.read().split()[-1] == str(len(prepare(made(cache=False), tokenizer).train))
    assert len(entries(tmp_path / "cache")) == 1
    assert everything(prepare(made(), tokenizer)) == everything(prepare(made(cache=False), tokenizer))
    assert len(encodings) == 2  # of those without the folder


@pytest.mark.parametrize("how", ["mkdir", "rename", "full"])
def test_where_nothing_can_be_kept_rows_are_prepared_all_the_same(
    how: str, made: Callable[..., Recipe], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    wanted = everything(prepare(made(cache=False), tokenizer))
    if how == "mkdir":
        (tmp_path / "cache").write_text("a file")
    else:

        def fails(*_: Any) -> None:
            raise OSError(28, "No space left on device") if how == "full" else OSError(30, "Read-only file system")

        monkeypatch.setattr(disk, "sync" if how == "full" else "taken", fails)
    assert everything(prepare(made(), tokenizer)) == wanted
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"tokens are not kept: {tmp_path / 'cache'}: ") and "data.cache" in line
    assert not (tmp_path / "cache").is_dir() or not list((tmp_path / "cache").glob(".unfinished-*"))


def test_a_file_that_changes_meanwhile_is_not_kept(
    made: Callable[..., Recipe], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    real = sources_in_tokens.tokenize_source

    def changing(*args: Any, **kwargs: Any) -> Any:
        tokens = real(*args, **kwargs)
        os.utime(tmp_path / "rows.jsonl", ns=(1, 1))
        return tokens

    monkeypatch.setattr(sources_in_tokens, "tokenize_source", changing)
    prepared = prepare(made(), tokenizer)
    assert len(prepared.train.to_list()) == len(prepare(made(cache=False), tokenizer).train)
    assert "changed while it was read" in capfd.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_the_longest_unused_go_first(
    write_rows: Callable[..., Path], recipe: Callable[..., Recipe], tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    def start(number: int) -> Path:
        path = write_rows([{"prompt": f"{n}", "completion": f"{number}"} for n in range(50)], f"rows-{number}.jsonl")
        before = set(entries(tmp_path / "cache")) if (tmp_path / "cache").exists() else set()
        prepare(recipe(path, cache=str(tmp_path / "cache")), tokenizer)
        return next(iter(set(entries(tmp_path / "cache")) - before), path)

    first, second = start(0), start(1)
    size = sum(file.stat().st_size for file in first.iterdir())
    for age, entry in ((100, first), (200, second)):
        os.utime(entry, (time.time() - age,) * 2)
    start(0)  # read again, so that it is the younger one whatever came first
    monkeypatch.setattr(kept_tokens.KeptTokens.__init__, "__defaults__", (int(2.5 * size),))
    third = start(2)
    assert entries(tmp_path / "cache") == sorted([first, third])


def test_leftovers_of_the_living_stay(made: Callable[..., Recipe], tokenizer: Any, tmp_path: Path) -> None:
    cache, host = tmp_path / "cache", socket.gethostname()
    names = {f".unfinished-a-1-{os.getpid()}@{host}": True, f".unfinished-b-1-999999999@{host}": False}
    names |= {".unfinished-c-1-999999999@elsewhere": True, ".unfinished-d-1-1@elsewhere": False}
    for name in names:
        (cache / name).mkdir(parents=True)
    os.utime(cache / ".unfinished-d-1-1@elsewhere", (1, 1))
    (cache / ".lock-of-a-process-that-was-killed").touch()
    prepare(made(), tokenizer)
    assert {name for name, stays in names.items() if stays} == {place.name for place in cache.glob(".*")}


def test_the_lock_of_one_that_was_killed_after_its_entry_was_whole_goes(
    made: Callable[..., Recipe], tokenizer: Any, tmp_path: Path, encodings: list[int]
) -> None:
    prepare(made(), tokenizer)
    (entry,) = entries(tmp_path / "cache")
    left = tmp_path / "cache" / f".lock-{entry.name}"
    left.touch()
    prepare(made(), tokenizer)
    assert not left.exists() and entries(tmp_path / "cache") == [entry] and len(encodings) == 1
