"""Paths of a recipe: current directory, recipe's folder, then shipped files."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hybrid_ft.errors import did_you_mean, shown
from hybrid_ft.finetune.recipe.checks import SHAPE_PRESETS, TRAINED_PRESETS
from hybrid_ft.finetune.recipe.hub_files import HUB_FILES, repository
from hybrid_ft.finetune.recipe.mistakes import Wrong
from hybrid_ft.finetune.recipe.nearest import nearest_file
from hybrid_ft.finetune.recipe.shipped import STOCK, column_names, evaluation_names, is_yaml, shipped
from hybrid_ft.finetune.recipe.stage_kinds import PREFERENCE
from hybrid_ft.finetune.recipe.yaml_file import Loc

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source
    from hybrid_ft.finetune.recipe.model_section import Model
    from hybrid_ft.finetune.recipe.preference_section import Kto
    from hybrid_ft.finetune.recipe.schema import Dpo, Evaluate, Recipe

    Cached = TypeVar("Cached", Dpo, Kto)

CHAT_TEMPLATES = ("olmo-instruct",)

_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?", re.ASCII)
_DATA_FILE = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|txt|gz|bz2|xz|zst|zip|arrow|ya?ml)$", re.IGNORECASE)


def resolve_files(recipe: Recipe, folder: Path, made: bool = False) -> tuple[Recipe, list[Wrong]]:
    """The recipe with every local path as it opens from the current directory, and what is wrong with
    those that do not.

    ``made``: an earlier stage makes the folder at ``model.path``, which need not be there yet.
    """
    files = Files(folder)
    data = recipe.data
    held_out = files.sources(data.eval.sources, ("data", "eval", "sources"))
    update = {
        "model": files.model(recipe.model, made),
        "data": data.model_copy(
            update={
                "sources": files.sources(data.sources, ("data", "sources")),
                "decontaminate": [files.task_or_rows(at, name) for at, name in enumerate(data.decontaminate)],
                "eval": data.eval.model_copy(update={"sources": held_out}),
                "cache": files.folder_to_write(("data", "cache"), data.cache or None, "name a folder") or data.cache,
            }
        ),
        "evaluate": files.evaluate(recipe.evaluate),
        "output": files.folder_to_write(("output",), recipe.output, "the run needs a folder"),
        **{
            name: files.with_cache(name, section)
            for name in PREFERENCE
            if (section := getattr(recipe, name)) and "reference_cache" in type(section).model_fields
        },
    }
    return recipe.model_copy(update=update), files.wrongs


class Files:
    """Looks paths up and notes the wrong ones. ``folder`` is the recipe's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.wrongs: list[Wrong] = []

    def model(self, model: Model, made: bool) -> Model:
        path, tokenizer, template = model.path, model.tokenizer, model.chat_template
        preset = path in (*TRAINED_PRESETS, *SHAPE_PRESETS)
        if not preset and not made:
            path = self.local_or_hub(("model", "path"), path, "model folder")
        if model.revision and (preset or os.path.exists(path)):
            text = f"got {shown(model.revision)}; only a hub name has revisions, model.path is local"
            self.wrongs.append(Wrong(("model", "revision"), text, (("model", "path"),)))
        if tokenizer:
            tokenizer = self.local_or_hub(("model", "tokenizer"), tokenizer, "tokenizer folder")
        adapter = model.adapter
        if adapter and not made:
            adapter = self.local_or_hub(("model", "adapter"), adapter, "adapter folder")
        if template:
            template = self.named_or_file(("model", "chat_template"), template, CHAT_TEMPLATES, ".jinja")
        update = {"path": path, "tokenizer": tokenizer, "chat_template": template, "adapter": adapter}
        return model.model_copy(update=update)

    def sources(self, sources: Sequence[Source], loc: Loc) -> list[Source]:
        return [self._source(source, (*loc, index)) for index, source in enumerate(sources)]

    def _source(self, source: Source, loc: Loc) -> Source:
        path = self.local_or_hub((*loc, "path"), source.path, "data file")
        of_hub = path.startswith(HUB_FILES)
        if of_hub or os.path.exists(path) or glob.has_magic(path):
            if source.revision and not of_hub:
                text = f"got {shown(source.revision)}; only a hub dataset has one, the path is local"
                self.wrongs.append(Wrong((*loc, "revision"), text, ((*loc, "path"),)))
            if source.name and not os.path.isdir(path):
                text = (
                    f"got {shown(source.name)}; only a hub dataset or a folder has configurations, the path is a file"
                )
                self.wrongs.append(Wrong((*loc, "name"), text, ((*loc, "path"),)))
        columns = source.columns
        if columns is not None and (wrong := columns.contradiction()):
            self.wrongs.append(Wrong((*loc, "columns"), wrong))
        if columns is not None and columns.file is not None:
            file = self.named_or_file((*loc, "columns"), columns.file, column_names(), ".yaml")
            columns = columns.model_copy(update={"file": file})
        return source.model_copy(update={"path": path, "columns": columns})

    def task_or_rows(self, at: int, name: str) -> str:
        """A shipped task's name as it is, or a task's file, or rows as in a source."""
        loc: Loc = ("data", "decontaminate", at)
        return name if name in evaluation_names() else self.local_or_hub(loc, name, "data file")

    def evaluate(self, evaluate: Evaluate) -> Evaluate:
        suite = evaluate.suite
        if suite is None:
            return evaluate
        found = {
            key: [self._task(("evaluate", "suite", key, at), task) for at, task in enumerate(getattr(suite, key))]
            for key in ("tasks", "forgetting")
        }
        return evaluate.model_copy(update={"suite": suite.model_copy(update=found)})

    def _task(self, loc: Loc, task: str) -> str:
        own = task.removeprefix(STOCK)
        if own == task:
            return self.named_or_file(loc, task, evaluation_names(), ".yaml")
        if not is_yaml(own):  # which names lm_eval has is known once its 14,000 files are read
            return task
        found = self._find(own)
        if found is None or not os.path.isfile(found):
            near = nearest_file(own, str(self._folder))
            self.wrongs.append(Wrong(loc, f"got {shown(task)}; there is no file {own}{near}"))
        return STOCK + (found or own)

    def with_cache(self, name: str, section: Cached) -> Cached:
        cache = self.folder_to_write((name, "reference_cache"), section.reference_cache, "name a folder")
        return section.model_copy(update={"reference_cache": cache})

    def folder_to_write(self, loc: Loc, path: str | None, fix: str) -> str | None:
        """The path with ``~`` replaced; what neither is a folder nor can become one is wrong."""
        if not path:
            return path
        path = os.path.expanduser(path)
        if problem := _no_folder(path):
            self.wrongs.append(Wrong(loc, f"got {shown(path)}, {problem}; {fix}"))
        return path

    def local_or_hub(self, loc: Loc, path: str, what: str) -> str:
        """An existing path, or a hub name as it is; what can only be a path and is not there is wrong."""
        if what == "data file" and path.startswith(HUB_FILES):
            try:
                repository(path)
            except ValueError as error:
                self.wrongs.append(Wrong(loc, str(error)))
            return path
        found = self._find(path, patterns=what == "data file")
        if found is not None and os.path.exists(found) and (problem := _unreadable(found)):
            self.wrongs.append(Wrong(loc, f"got {shown(path)}; {problem}"))
        if found is None and ("://" in path or not _HUB_NAME.fullmatch(path) or _DATA_FILE.search(path)):
            also = "" if what == "data file" and _DATA_FILE.search(path) else ", nor can it be a hub name"
            near = nearest_file(path, str(self._folder))
            self.wrongs.append(Wrong(loc, f"got {shown(path)}; there is no such {what}{also}{near}"))
        return found or path

    def named_or_file(self, loc: Loc, path: str, names: Sequence[str], suffix: str) -> str:
        """A shipped name as it is, or an existing file."""
        if path in names:
            return path
        found = self._find(path)
        if found is not None and os.path.isfile(found) and (problem := _unreadable(found)):
            self.wrongs.append(Wrong(loc, f"got {shown(path)}; {problem}"))
        if found is None or not os.path.isfile(found):
            known = ", ".join(names) or "none ships yet"
            near = did_you_mean(path, names) or nearest_file(path, str(self._folder))
            text = f"got {shown(path)}; must be a shipped name ({known}) or a {suffix} file{near}"
            self.wrongs.append(Wrong(loc, text))
        return found or path

    def _find(self, path: str, patterns: bool = False) -> str | None:
        expanded = os.path.expanduser(path)
        if _there(expanded, patterns):
            return expanded
        if os.path.isabs(expanded):
            return None
        beside = str(self._folder / expanded)
        if _there(beside, patterns):
            return beside
        shipped_file = shipped(expanded)
        return str(shipped_file) if shipped_file else None


def _there(path: str, patterns: bool) -> bool:
    """Whether something lies at a path, or files at a pattern such as ``data/*.jsonl`` where it may be one."""
    return os.path.exists(path) or (
        patterns and glob.has_magic(path) and any(os.path.isfile(file) for file in glob.iglob(path, recursive=True))
    )


def _no_folder(path: str) -> str:
    """Why a path neither is a folder nor can become one; nothing where it may."""
    if not path.isprintable():
        return "which holds a line end or another control character"
    if os.path.exists(path):
        return "" if os.path.isdir(path) else "which is a file"
    if os.path.islink(path):
        return f"which is a link to {os.readlink(path)}, where nothing is"
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"which cannot be a folder ({error.strerror})"
    return ""


def _unreadable(path: str) -> str:
    """Why what exists at a path cannot be read; nothing where it can."""
    if not os.path.isfile(path) and not os.path.isdir(path):
        return "it is neither a file nor a folder, and reading from it may never end"
    if not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
        kind = "folder" if os.path.isdir(path) else "file"
        return f"this user may not read it; chmod it, or copy it to another {kind}"
    return ""
