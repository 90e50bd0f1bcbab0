"""Rows that several processes encode are those that one does, in the same order, with the same account
and the same refusals."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.data import encoding_workers, source_rows
from hybrid_ft.finetune.data.prepare import Prepared, prepare
from hybrid_ft.finetune.recipe.schema import Recipe

STAGES: dict[str, dict[str, Any]] = {"rows": {}, "pairs": {"dpo": {}}, "judged": {"kto": {}}}


@pytest.fixture
def recipe_of(write_rows: Callable[..., Path]) -> Callable[..., Recipe]:
    def made(stage: str = "rows", **data: Any) -> Recipe:
        rows: list[dict[str, Any]] = [
            {"prompt": f"question {n}", "completion": f"answer {n} " * (n % 4 + 1)} for n in range(200)
        ]
        rows[30]["completion"] = None
        rows[31]["prompt"] = ""
        rows[150]["completion"] = "<|im_end|> as text"
        for n, row in enumerate(rows):
            if stage == "pairs":
                row |= {"chosen": row.pop("completion"), "rejected": f"no {n}"}
            if stage == "judged":
                row["label"] = n % 3 > 0
        usual = {"on_bad_row": "skip", "max_dropped": 0.9, "max_length": 120, "eval": {"fraction": 0.1}}
        sources = [{"path": str(write_rows(rows))}, {"path": str(write_rows(rows[40:60], "more.jsonl"))}]
        raw = {"model": {"path": "tiny"}, "data": {"sources": sources} | usual | data}
        return Recipe.model_validate(raw | STAGES[stage])

    return made


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Small batches, and so many processes from the first one on."""

    def of(count: int) -> None:
        monkeypatch.setattr(encoding_workers, "cores", lambda: count)
        monkeypatch.setattr(encoding_workers, "ALONE", 0)
        monkeypatch.setattr(source_rows, "BATCH", 8)

    return of


@pytest.fixture
def left() -> Callable[[], set[psutil.Process]]:
    """The processes that have been started since and are still there."""
    before = set(psutil.Process().children())
    return lambda: set(psutil.Process().children()) - before


def everything(prepared: Prepared) -> tuple[Any, ...]:
    assert prepared.eval is not None
    return prepared.train.to_list(), prepared.eval.to_list(), prepared.packs, prepared.report.as_dict()


@pytest.mark.parametrize("stage", STAGES)
def test_several_give_what_one_does(
    stage: str,
    recipe_of: Callable[..., Recipe],
    processes: Callable[[int], None],
    tokenizer: Any,
    left: Callable[[], set[psutil.Process]],
) -> None:
    processes(1)
    alone = everything(prepare(recipe_of(stage), tokenizer))
    processes(3)
    assert everything(prepare(recipe_of(stage), tokenizer)) == alone
    assert not left()


@pytest.mark.parametrize(
    "data", [{"on_bad_row": "error"}, {"on_long_row": "error", "max_length": 40}], ids=["bad", "long"]
)
def test_the_same_row_stops_a_run(
    data: dict[str, Any],
    recipe_of: Callable[..., Recipe],
    processes: Callable[[int], None],
    tokenizer: Any,
    left: Callable[[], set[psutil.Process]],
) -> None:
    said = []
    for count in (1, 3):
        processes(count)
        with pytest.raises(InputError) as error:
            prepare(recipe_of(**data), tokenizer)
        said.append(str(error.value))
    assert said[0] == said[1] and not left()


def test_a_process_that_is_killed_is_said(
    recipe_of: Callable[..., Recipe], processes: Callable[[int], None], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes(2)
    parent, real = os.getpid(), source_rows.encoded_batch

    def killed(*args: Any) -> Any:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    monkeypatch.setattr(encoding_workers, "encoded_batch", killed)
    with pytest.raises(InputError, match="a process that encoded rows was killed") as error:
        prepare(recipe_of(), tokenizer)
    assert error.value.status == ENVIRONMENT


def test_processes_end_with_the_one_that_started_them(
    recipe_of: Callable[..., Recipe], processes: Callable[[int], None], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes(2)
    recipe, me = recipe_of(), os.getpid()
    monkeypatch.setattr(encoding_workers, "encoded_batch", lambda *_: time.sleep(600))
    child = os.fork()
    if child == 0:
        try:
            prepare(recipe, tokenizer)
        finally:
            os._exit(0)
    workers: list[psutil.Process] = []
    until = time.monotonic() + 300
    while len(workers) < 2 and time.monotonic() < until:
        workers = psutil.Process(child).children()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(workers) == 2 and os.getpid() == me
    assert psutil.wait_procs(workers, timeout=300)[1] == []


def test_processes_beside_each_other_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert encoding_workers.cores() == 12
    for beside, each in (("4", 3), ("8", 1), ("64", 0)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
        assert encoding_workers.cores() == each
