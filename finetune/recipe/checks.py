"""What a schema cannot say: keys that contradict each other, files that are not there."""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import holds_secret
from hybrid_ft.finetune.recipe.mistakes import Wrong, shown
from hybrid_ft.finetune.recipe.shipped import CARDS, PAIR_CARDS, card_names, did_you_mean, shipped
from hybrid_ft.finetune.recipe.yaml_file import Loc

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Recipe, Source

TRAINED_PRESETS = ("tiny",)
SHAPE_PRESETS = ("190M", "1B", "7B")
CHAT_TEMPLATES = ("olmo-instruct",)
NORMALISED_LOSSES = ("sigmoid_norm", "ipo", "sft")
SMOOTHED_LOSSES = ("robust", "exo_pair", "aot", "aot_unpaired")

SECRET = "holds a secret; take it out, secrets are read from the environment (HF_TOKEN, WANDB_API_KEY)"

_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?", re.ASCII)
_DATA_FILE = re.compile(r"\.(jsonl|json|csv|tsv|parquet|txt|gz|bz2|zst|zip|arrow|ya?ml)$", re.IGNORECASE)


def contradictions(recipe: Recipe) -> Iterator[Wrong]:
    """Values that are fine alone and wrong together."""
    data, train, evaluate, model = recipe.data, recipe.train, recipe.evaluate, recipe.model
    yield from _secrets(recipe.model_dump())
    if data.packing and train.batch_tokens < data.max_length:
        yield Wrong(
            ("train", "batch_tokens"),
            f"got {train.batch_tokens}; must be at least data.max_length ({data.max_length}) when rows are packed",
            (("data", "max_length"), ("data", "packing")),
        )
    if data.eval.sources and (data.eval.fraction or data.eval.count):
        yield Wrong(("data", "eval", "sources"), "held-out rows come from sources or by fraction or count, not both")
    if data.eval.fraction and data.eval.count:
        yield Wrong(("data", "eval", "count"), f"got {data.eval.count}; give fraction or count, not both")
    yield from _weights(data.sources, ("data", "sources"))
    yield from _weights(data.eval.sources, ("data", "eval", "sources"))
    if not data.eval.wanted:
        ways = tuple(("data", "eval", key) for key in ("fraction", "count", "sources"))
        needs = "needs held-out rows; set data.eval.fraction, data.eval.count or data.eval.sources"
        if evaluate.every:
            yield Wrong(("evaluate", "every"), f"got {evaluate.every}; {needs}", ways)
        if evaluate.answers:
            yield Wrong(("evaluate", "answers"), f"got {evaluate.answers}; {needs}", ways)
    if evaluate.load_best and not evaluate.every:
        yield Wrong(("evaluate", "load_best"), "needs held-out losses on the way; set evaluate.every")
    if model.from_scratch and model.lora:
        yield Wrong(
            ("model", "lora"), "needs trained weights to adapt; set model.from_scratch: false or model.lora: null"
        )
    if model.path in SHAPE_PRESETS and not model.from_scratch:
        yield Wrong(
            ("model", "path"),
            f"got {model.path}, a shape without weights; set model.from_scratch: true or name a model",
        )
    if model.path in SHAPE_PRESETS and model.from_scratch and model.tokenizer is None:
        yield Wrong(("model", "tokenizer"), f"is missing; the preset {model.path} has none of its own")
    for index, tracker in enumerate(train.trackers):
        if importlib.util.find_spec(tracker) is None:
            yield Wrong(("train", "trackers", index), f"got {tracker}, which is not installed; pip install {tracker}")


def preference_contradictions(recipe: Recipe, stage: str | None) -> Iterator[Wrong]:
    """The same for a recipe of pairs."""
    dpo, train, lora = recipe.dpo, recipe.train, recipe.model.lora
    assert dpo is not None and dpo.beta is not None
    if stage == "sft":
        yield Wrong(("dpo",), "this recipe is for pairs; run it with hybrid-ft dpo, or take the section out")
    if dpo.beta > 1 and dpo.loss not in NORMALISED_LOSSES:
        yield Wrong(
            ("dpo", "beta"),
            f"got {dpo.beta:g} with loss {dpo.loss}, which adds up an answer's log-probabilities: hundreds of tokens "
            "times a beta above 1 saturate it. Use 0.1 or so, or loss: sigmoid_norm, which is per token",
            (("dpo", "loss"),),
        )
    if dpo.label_smoothing and dpo.loss not in SMOOTHED_LOSSES:
        yield Wrong(
            ("dpo", "label_smoothing"),
            f"got {dpo.label_smoothing:g}; {dpo.loss} takes none, use one of {', '.join(SMOOTHED_LOSSES)}",
            (("dpo", "loss"),),
        )
    if dpo.loss == "exo_pair" and not dpo.label_smoothing:
        yield Wrong(("dpo", "label_smoothing"), "must be above 0 for exo_pair; 0.001 is usual", (("dpo", "loss"),))
    if train.accumulation != 1:
        yield Wrong(
            ("train", "accumulation"),
            f"got {train.accumulation}; a step is dpo.pairs_per_step pairs ({dpo.pairs_per_step}) in as many "
            "micro-batches as train.batch_tokens asks for; set dpo.pairs_per_step",
        )
    if not recipe.data.packing:
        yield Wrong(("data", "packing"), "got false; pairs are always laid end to end")
    if lora and lora.dropout:
        yield Wrong(
            ("model", "lora", "dropout"),
            f"got {lora.dropout:g}; must be 0 for pairs: it would add noise to every comparison with the reference",
        )


def _secrets(value: Any, loc: Loc = ()) -> Iterator[Wrong]:
    """Every text that holds a credential: a run writes its recipe down, and its output's name stands in many files."""
    if isinstance(value, str) and holds_secret(value):
        yield Wrong(loc, SECRET)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _secrets(inner, (*loc, key))


def _weights(sources: list[Source], loc: Loc) -> Iterator[Wrong]:
    have = [source.weight is not None for source in sources]
    if any(have) and not all(have):
        index = have.index(False)
        yield Wrong((*loc, index), "has no weight while another source has one; give all of them a weight, or none")


def resolve_files(recipe: Recipe, folder: Path) -> list[Wrong]:
    """Replace every local path by one that opens from the current directory; list those that do not exist."""
    model = recipe.model
    wrongs: list[Wrong] = []
    files = _Files(folder, wrongs)
    preset = model.path in (*TRAINED_PRESETS, *SHAPE_PRESETS)
    if not preset:
        model.path = files.local_or_hub(("model", "path"), model.path, "model folder")
    if model.revision and (preset or os.path.exists(model.path)):
        text = f"got {shown(model.revision)}; only a hub name has revisions, model.path is local"
        wrongs.append(Wrong(("model", "revision"), text, (("model", "path"),)))
    if model.tokenizer:
        model.tokenizer = files.local_or_hub(("model", "tokenizer"), model.tokenizer, "tokenizer folder")
    if model.chat_template:
        loc = ("model", "chat_template")
        model.chat_template = files.named_or_file(loc, model.chat_template, CHAT_TEMPLATES, ".jinja")
    cards = card_names(PAIR_CARDS if recipe.dpo else CARDS)
    for index, source in enumerate(recipe.data.sources):
        _resolve_source(source, ("data", "sources", index), files, cards)
    for index, source in enumerate(recipe.data.eval.sources):
        _resolve_source(source, ("data", "eval", "sources", index), files, cards)
    if recipe.output:
        recipe.output = os.path.expanduser(recipe.output)
        if problem := _no_folder(recipe.output):
            wrongs.append(Wrong(("output",), f"got {shown(recipe.output)}, {problem}; the run needs a folder"))
    if recipe.dpo and recipe.dpo.reference_cache:
        cache = recipe.dpo.reference_cache = os.path.expanduser(recipe.dpo.reference_cache)
        if problem := _no_folder(cache):
            wrongs.append(Wrong(("dpo", "reference_cache"), f"got {shown(cache)}, {problem}; name a folder"))
    return wrongs


def _resolve_source(source: Source, loc: Loc, files: _Files, cards: Sequence[str]) -> None:
    source.path = files.local_or_hub((*loc, "path"), source.path, "data file")
    if os.path.exists(source.path):
        for key in ("name", "revision"):
            if value := getattr(source, key):
                text = f"got {shown(value)}; only a hub dataset has one, the path is local"
                files.wrongs.append(Wrong((*loc, key), text, ((*loc, "path"),)))
    if source.card:
        source.card = files.named_or_file((*loc, "card"), source.card, cards, ".yaml")


class _Files:
    """Looks paths up from the current directory, then the recipe's folder, then the shipped files."""

    def __init__(self, folder: Path, wrongs: list[Wrong]) -> None:
        self._folder = folder
        self.wrongs = wrongs

    def local_or_hub(self, loc: Loc, path: str, what: str) -> str:
        """An existing path, or a hub name as it is; what can only be a path and is not there is wrong."""
        found = self._find(path)
        if found is not None and (problem := _unreadable(found)):
            self.wrongs.append(Wrong(loc, f"got {shown(path)}; {problem}"))
        if found is None and ("://" in path or not _HUB_NAME.fullmatch(path) or _DATA_FILE.search(path)):
            also = "" if what == "data file" and _DATA_FILE.search(path) else ", nor can it be a hub name"
            self.wrongs.append(Wrong(loc, f"got {shown(path)}; there is no such {what}{also}{self._near(path)}"))
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
            near = did_you_mean(path, names) or self._near(path)
            self.wrongs.append(
                Wrong(loc, f"got {shown(path)}; must be a shipped name ({known}) or a {suffix} file{near}")
            )
        return found or path

    def _find(self, path: str) -> str | None:
        expanded = os.path.expanduser(path)
        if os.path.exists(expanded):
            return expanded
        if os.path.isabs(expanded):
            return None
        beside = self._folder / expanded
        if os.path.exists(beside):
            return str(beside)
        shipped_file = shipped(expanded)
        return str(shipped_file) if shipped_file else None

    def _near(self, path: str) -> str:
        """``; did you mean FILE?`` for a file of nearly that name in the same folder."""
        for base in ("", str(self._folder)):
            folder, name = os.path.split(os.path.join(base, os.path.expanduser(path)))
            try:
                with os.scandir(folder or ".") as entries:
                    names = [entry.name for entry in itertools.islice(entries, 1000) if entry.name.isprintable()]
            except (OSError, ValueError):
                continue
            if near := difflib.get_close_matches(name[:80], names, n=1, cutoff=0.75):
                return f"; did you mean {os.path.join(folder, near[0])}?"
        return ""


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
        return f"which cannot be ({error.strerror})"
    return ""


def _unreadable(path: str) -> str:
    """Why what exists at a path cannot be read; nothing where it can."""
    if not os.path.isfile(path) and not os.path.isdir(path):
        return "it is neither a file nor a folder, and reading from it may never end"
    if not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
        return (
            f"this user may not read it; chmod it, or copy it to another {'folder' if os.path.isdir(path) else 'file'}"
        )
    return ""
