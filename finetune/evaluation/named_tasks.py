"""The tasks that a command or a recipe names, read and checked together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation.scorers.code import check_jail
from hybrid_ft.finetune.evaluation.task import Task, load_task

NamedTask = tuple[str, Task, bool]
"""Name, task, and whether it stands for what may be forgotten."""

MEASURES = {
    "exact": ["exact"],
    "contains": ["contains"],
    "number": ["number"],
    "choice": ["accuracy"],
    "json": ["fields", "whole", "valid", "invented"],
    "calls": ["calls", "functions"],
    "code": ["pass"],
    "instructions": ["prompt", "instruction"],
    "refusal": ["right", "refused"],
    "loss": ["loss"],
}
"""Of each evaluator the measures, the one that speaks for it first."""


def named_tasks(
    tasks: Sequence[str], forgetting: Sequence[str], changes: Sequence[str], allow: str, run_code: bool
) -> list[NamedTask]:
    """Tasks by file or name. ``changes``: ``key=value``, or ``task:key=value``. ``allow``: what lets code run, which is
    so with ``run_code``. Raises InputError with every mistake."""
    found: list[NamedTask] = []
    mistakes = []
    for name, forgotten in [*((n, False) for n in tasks), *((n, True) for n in forgetting)]:
        try:
            called, task = load_task(name, [text for change in changes if (text := _for_task(change, name))])
        except InputError as error:
            mistakes.append(str(error))
            continue
        if any(called == other for other, _, _ in found):
            mistakes.append(f"{name}: a task of this name is there already; rename the file")
        if task.evaluator == "code" and not run_code:
            mistakes.append(f"{name}: runs code that the model writes; allow it with {allow}")
        found.append((called, task, forgotten))
    if mistakes:
        raise InputError("\n".join(mistakes))
    if any(task.evaluator == "code" for _, task, _ in found):
        check_jail()
    return found


def _for_task(change: str, task: str) -> str:
    """The ``key=value`` of a change that is for this task, or for all; nothing where it is for another."""
    key, equals, value = change.partition("=")
    of, colon, own = key.partition(":")
    if not colon:
        return change
    return f"{own}{equals}{value}" if of == Path(task).stem else ""
