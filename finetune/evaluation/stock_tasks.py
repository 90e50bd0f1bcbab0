"""Tasks of lm_eval by name: ``lm_eval:gsm8k``, or a file of its own form."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from hybrid_ft.errors import ENVIRONMENT, InputError, did_you_mean, one_line
from hybrid_ft.finetune.recipe.load import validated
from hybrid_ft.finetune.recipe.mistakes import Mistakes
from hybrid_ft.finetune.recipe.overrides import apply_overrides
from hybrid_ft.finetune.recipe.section import AtLeastOne, Section, Text
from hybrid_ft.finetune.recipe.shipped import STOCK, task_called
from hybrid_ft.finetune.recipe.yaml_file import YamlFile
from hybrid_ft.finetune.runs.identity import digest_of

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task as LmEvalTask
    from lm_eval.tasks.manager import TaskDict, TaskManager

_FEWSHOT_SEED = 1234
"""Of the examples that a task draws, as in lm_eval's own command."""


class StockOptions(Section):
    """What ``--set`` may say of a stock task."""

    shots: int | None = Field(None, ge=0, le=100, examples=[5])
    """Examples before each question; null: the task's own number. One that the task fixes at 0 stays."""
    form: Literal["plain", "chat"] = Field("plain", examples=["chat"])
    """plain: as text, which is lm_eval's own default. chat: by the model's chat template, examples as turns."""
    system: Text | None = Field(None, examples=["Answer briefly."])
    """A system message before it."""
    max_new_tokens: AtLeastOne | None = Field(None, examples=[1024])
    """Tokens of the longest answer; null: the task's own number."""


@dataclass
class Stock:
    """One name of lm_eval: a task, a group of them, or those with one tag. ``rows``: of each task the rows that are
    asked, None for all."""

    name: str
    tasks: TaskDict
    options: StockOptions
    forgetting: bool
    rows: dict[str, list[int]] | None = None

    @property
    def leaves(self) -> dict[str, LmEvalTask]:
        return dict(self.tasks["tasks"])

    @property
    def group(self) -> Group | None:
        """Where the name is a group's."""
        return self.tasks.get("groups", {}).get(self.name.removeprefix(STOCK))

    @functools.cached_property
    def digest(self) -> str:
        """Of its tasks' settings and of the rows that are asked."""
        return digest_of(
            [self.options.model_dump(), [_identity(task, leaf, self.rows) for leaf, task in self.leaves.items()]]
        )


def is_stock(name: str) -> bool:
    return name.startswith(STOCK)


def load_stock(
    tasks: Sequence[str], forgetting: Sequence[str], changes: Sequence[str], limit: int | None
) -> list[Stock]:
    """The tasks of these names with their rows. Raises InputError: status 3 where lm_eval or the rows are not there."""
    wanted = [(name, forgotten) for part, forgotten in ((tasks, False), (forgetting, True)) for name in part]
    wanted = [(name, forgotten) for name, forgotten in wanted if is_stock(name)]
    if not wanted:
        return []
    options = [_options(name, changes) for name, _ in wanted]
    for name, _ in wanted:
        _check_name(name)
    if find_spec("lm_eval") is None:
        raise InputError(f"{wanted[0][0]}: lm_eval is not installed; run pip install 'hybrid-ft[eval]'", ENVIRONMENT)
    with _quiet():
        manager = _manager([name for name, _ in wanted])
        found = [
            Stock(task_called(name), _loaded(name, manager), how, forgotten)
            for (name, forgotten), how in zip(wanted, options, strict=True)
        ]
        for stock in found:
            if [one.name for one in found].count(stock.name) > 1:
                raise InputError(f"{stock.name}: a task of this name is there already")
            _set_up(stock, limit)
    return found


def _options(name: str, changes: Sequence[str]) -> StockOptions:
    """Of the changes those for this task, or for all."""
    own = [change.removeprefix(f"{task_called(name)}:") for change in changes]
    own = [change for change in own if ":" not in change.partition("=")[0]]
    mistakes = Mistakes(Path("override"), YamlFile({}, {}, []))
    values: dict[str, Any] = {}
    apply_overrides(values, own, mistakes)
    options = validated(values, StockOptions, mistakes)
    if options is None or mistakes:
        raise InputError("\n".join(f"{task_called(name)}: {line}" for line in mistakes.render().splitlines()))
    return options


def _manager(names: Sequence[str]) -> TaskManager:
    from lm_eval.tasks import TaskManager

    # to read its 14,000 files takes a quarter of a minute
    stock = [name for name in names if not Path(name.removeprefix(STOCK)).is_file()]
    return TaskManager(include_defaults=bool(stock))


def _check_name(name: str) -> None:
    """What can be said without lm_eval."""
    spec = name.removeprefix(STOCK)
    if not spec.strip():
        raise InputError(f"{STOCK} needs a task's name behind it, such as {STOCK}gsm8k, or a task file")
    if spec.endswith((".yaml", ".yml")) and not Path(spec).is_file():
        raise InputError(f"{name}: no such task file")


def _loaded(name: str, manager: TaskManager) -> TaskDict:
    spec = name.removeprefix(STOCK)
    if not Path(spec).is_file() and spec not in manager.task_index:
        raise InputError(f"{name}: lm_eval has no task of that name{did_you_mean(spec, manager.all_tasks)}")
    try:
        tasks = manager.load([spec])
    except Exception as error:  # noqa: BLE001 - the task's own code: no network, a package that is missing
        reached = isinstance(error, ImportError | OSError) and type(error) is not FileNotFoundError
        if Path(spec).is_file() and not reached:
            reason = one_line(error) if str(error) not in ("", "None") else type(error).__name__
            raise InputError(
                f"{name}: lm_eval cannot read it as a task file with its rows ({reason}); mend it"
            ) from None
        rule = "cannot be opened; its rows come from the hub, and some tasks need packages of their own"
        raise InputError(f"{name}: {rule} ({one_line(error)})", ENVIRONMENT) from None
    if not tasks["tasks"]:
        raise InputError(f"{name}: is a group without a task; name another")
    for leaf, task in tasks["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(
                f"{name}: {leaf} runs what the model writes outside of any jail; use --on humaneval or mbpp"
            )
        if getattr(task, "MULTIMODAL", False):
            raise InputError(f"{name}: {leaf} asks about images; must ask by text alone")
    return tasks


def _set_up(stock: Stock, limit: int | None) -> None:
    """As lm_eval's own command does: examples, their seed, the length of answers; then the rows that are asked."""
    for task in stock.leaves.values():
        if stock.options.max_new_tokens and task.get_config("output_type") == "generate_until":
            # what a task calls it otherwise comes first
            kwargs = {
                key: value for key, value in (task.get_config("generation_kwargs") or {}).items() if "max_" not in key
            }
            task.set_config("generation_kwargs", kwargs | {"max_gen_toks": stock.options.max_new_tokens})
        fixed = task.get_config("num_fewshot")
        if stock.options.shots is not None and fixed != 0:
            task.set_config("num_fewshot", stock.options.shots)
        elif fixed is None:
            task.set_config("num_fewshot", 0)
    if limit is not None:
        counts = {leaf: len(task.eval_docs) for leaf, task in stock.leaves.items()}
        whole, chance = sum(counts.values()), random.Random(0)
        share = {leaf: min(count, max(1, round(limit * count / whole))) for leaf, count in counts.items()}
        stock.rows = {leaf: sorted(chance.sample(range(counts[leaf]), share[leaf])) for leaf in counts}


def _identity(task: LmEvalTask, leaf: str, rows: dict[str, list[int]] | None) -> list[Any]:
    # functions stand in the settings as texts with their places in memory
    settings = re.sub(r" at 0x[0-9a-f]+", "", str(sorted(task.dump_config().items())))
    docs = task.eval_docs
    return [leaf, settings, [docs[row] for row in (rows[leaf] if rows else range(len(docs)))]]


def asked(stock: Stock, model: Any) -> dict[str, Any]:
    """lm_eval's results and samples of one model, an ``lm_eval.api.model.LM``. Random states are afterwards what they
    were."""
    import lm_eval

    for task in stock.leaves.values():
        task.set_fewshot_seed(_FEWSHOT_SEED)
    with _quiet(), _same_chance():
        results = lm_eval.evaluate(
            model,
            stock.tasks,
            samples=stock.rows,
            bootstrap_iters=0,
            log_samples=True,
            system_instruction=stock.options.system,
            apply_chat_template=stock.options.form == "chat",
            fewshot_as_multiturn=stock.options.form == "chat",
        )
    assert results is not None
    return dict(results)


@contextlib.contextmanager
def templates_once() -> Iterator[None]:
    """lm_eval compiles a task's templates anew for each row, longer than a small model answers."""
    from lm_eval.utils import env

    env.from_string = functools.lru_cache(maxsize=None)(env.from_string)
    try:
        yield
    finally:
        del env.from_string


@contextlib.contextmanager
def _same_chance() -> Iterator[None]:
    before, arrays = random.getstate(), np.random.get_state()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(arrays)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without lm_eval's bars and log."""
    log = logging.getLogger("lm_eval")
    before, log.level = log.level, logging.CRITICAL
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(before)
