"""A recipe's mistakes as lines: place, key, value, rule, suggestion."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from hybrid_ft.errors import CUT_OFF, did_you_mean, shown
from hybrid_ft.finetune.recipe.keys import keys
from hybrid_ft.finetune.recipe.yaml_file import Loc, YamlFile, dotted, flow, plain_scalar

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

MOST_LINES = 40
MOST_KEYS = 8
"""of a section, in a message"""

# What other toolkits call a key, where no likeness of spelling would lead to ours.
_ALSO_CALLED = {
    "base_model": "model.path",
    "model_name_or_path": "model.path",
    "pretrained_model_name_or_path": "model.path",
    "torch_dtype": "model.dtype",
    "template": "model.chat_template",
    "lora_r": "model.lora.rank",
    "r": "model.lora.rank",
    "lora_rank": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "lora_target": "model.lora.targets",
    "lora_target_modules": "model.lora.targets",
    "target_modules": "model.lora.targets",
    "dataset": "data.sources",
    "datasets": "data.sources",
    "card": "data.sources[].columns",
    "dataset_name": "data.sources[].path",
    "dataset_config": "data.sources[].name",
    "subset": "data.sources[].name",
    "val_set_size": "data.eval.fraction",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "sample_packing": "data.packing",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.steps",
    "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup",
    "micro_batch_size": "train.batch_size",
    "per_device_train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.tokens_per_step",
    "save_steps": "train.save_every",
    "save_total_limit": "train.keep",
    "logging_steps": "train.log_every",
    "report_to": "train.trackers",
    "eval_steps": "evaluate.every",
    "loss_type": "dpo.loss",
    "pref_loss": "dpo.loss",
    "pref_beta": "dpo.beta",
    "output_dir": "output",
}

_FORM = re.compile(r"bool|int|float|str|constrained-\w+|literal\[.*\]")
"""pydantic's names for the forms of one value"""


class Place(NamedTuple):
    """Where the user wrote something: a line of the file, or an override (line 0, sorted last)."""

    line: int
    shown: str


class Wrong(NamedTuple):
    """A value that is fine by itself and wrong beside others, or a file that is not there."""

    loc: Loc
    text: str
    also_read: tuple[Loc, ...] = ()


class Mistakes:
    """All that is wrong with one recipe, with the place of every key."""

    def __init__(self, file: Path, text: YamlFile) -> None:
        self._file = file
        self._places = {loc: Place(line, f"{file}:{line}") for loc, line in text.lines.items()}
        self._found = [(Place(line, f"{file}:{line}"), mistake) for line, mistake in text.mistakes]
        self._elsewhere: list[str] = []
        self._broken: set[Loc] = set()

    def __bool__(self) -> bool:
        return bool(self._found or self._elsewhere)

    def written_at(self, loc: Loc, place: Place) -> None:
        """From here on ``loc`` and all below it was written somewhere else."""
        for below in [known for known in self._places if known[: len(loc)] == loc]:
            del self._places[below]
        self._places[loc] = place

    def add(self, place: Place, text: str) -> None:
        self._found.append((place, text))

    def found_in_schema(self, details: Sequence[ErrorDetails], schema: type[BaseModel]) -> None:
        """Add what pydantic found."""
        fields = dict(keys(schema))
        known = list(fields)
        meant: set[str] = set()
        rules: dict[Loc, list[str]] = {}
        for detail in details:
            if detail["type"] not in ("missing", "extra_forbidden"):
                rules.setdefault(_key_of(detail["loc"], fields), []).append(rule(detail))
        for detail in sorted(details, key=lambda detail: detail["type"] == "missing"):
            loc = detail["loc"]
            self._broken.add(loc)
            if detail["type"] == "extra_forbidden":
                near = nearest_key(loc, known) if len(details) <= MOST_LINES else None
                meant.add(near or "")
                self._add_at(loc, f"unknown key {dotted(loc)}" + _instead(near, loc, known))
            elif detail["type"] != "missing":
                loc = _key_of(loc, fields)
                if found := rules.pop(loc, None):  # of all forms that the value might have had, in one line
                    self._add_at(loc, self._named(loc, f"got {shown(detail['input'])}; {_either(found)}"))
            elif generic(loc) not in meant:
                self._add_at(loc, f"{dotted(loc)} is missing{_meaning(fields.get(generic(loc)))}")

    def found_in_values(self, wrongs: Iterable[Wrong]) -> None:
        """Add what the checks found, unless it reads a key that is already known to be wrong."""
        for wrong in wrongs:
            if not any(self._is_broken(loc) for loc in (wrong.loc, *wrong.also_read)):
                self._add_at(wrong.loc, self._named(wrong.loc, wrong.text))

    def include(self, others: Mistakes) -> None:
        """Add those of a part of this file, or of a file that this one names."""
        if others._file == self._file:
            self._found += others._found
        elif others:
            self.found_elsewhere(others.render())

    def found_elsewhere(self, lines: str) -> None:
        """Add lines that say themselves where they are."""
        self._elsewhere += lines.splitlines()

    def render(self) -> str:
        """One line each, in the order of the file, overrides last; then those of other files."""
        lines = [f"{place.shown}: {text}" for place, text in sorted(self._found, key=_file_order)] + self._elsewhere
        more = len(lines) - MOST_LINES
        return "\n".join(lines[:MOST_LINES] + ([f"{self._file}: and {more} more"] if more > 0 else []))

    def _is_broken(self, loc: Loc) -> bool:
        return any(loc[: len(broken)] == broken for broken in self._broken)

    def _add_at(self, loc: Loc, text: str) -> None:
        self._found.append((self._place(loc), text))

    def _place(self, loc: Loc) -> Place:
        for length in range(len(loc), -1, -1):
            if place := self._places.get(loc[:length]):
                return place
        return Place(1, str(self._file))

    def _named(self, loc: Loc, text: str) -> str:
        """``key: text``, without the key where the place has just said it."""
        return text if self._place(loc).shown == f"override {dotted(loc)}" else f"{dotted(loc)}: {text}"


def _key_of(loc: Loc, fields: dict[str, FieldInfo]) -> Loc:
    """Where a key takes a value in one of several forms, pydantic names the form behind it."""
    of_key = fields.get(generic(loc[:-1])) if loc and isinstance(loc[-1], str) else None
    several = of_key is not None and len(set(get_args(of_key.annotation)) - {NoneType}) > 1
    return loc[:-1] if several and _FORM.fullmatch(str(loc[-1])) else loc


def _either(rules: Sequence[str]) -> str:
    """``must be a whole number or 'auto'; did you mean auto?``"""
    heads, tails = zip(*(text.partition("; ")[::2] for text in rules))
    more = [head.removeprefix("must be ") for head in heads[1:]]
    return "; ".join([" or ".join([heads[0], *more]), *filter(None, tails)])


def _file_order(found: tuple[Place, str]) -> int:
    return found[0].line or 2**31


def rule(detail: ErrorDetails) -> str:
    """What pydantic wanted, in this project's words."""
    value, kind = detail["input"], detail["type"]
    if kind in ("model_type", "dict_type"):
        by_path = isinstance(value, str) and generic(detail["loc"]).split(".")[-1] in ("model", "sources[]")
        return "must be a mapping of keys" + (f", such as {{path: {shown(value)}}}" if by_path else "")
    if kind == "list_type":
        return "must be a list"
    if kind == "string_type":
        return "must be a string" + ("; put it in quotes" if isinstance(value, int | float) else "")
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "bool_type":
        return "must be true or false"
    if kind == "int_type":
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
        return "must be a whole number" + (f"; write {int(value)}" if whole else _unquote(value, int))
    if kind in ("float_type", "finite_number"):
        return "must be a number" + _unquote(value, int | float)
    if kind in ("too_short", "too_long"):
        return detail["msg"].split(" after validation")[0].replace("List should have", "must have")
    if kind == "literal_error":
        allowed = detail["msg"].removeprefix("Input should be ")
        return f"must be {allowed}" + did_you_mean(str(value), allowed.split("'")[1::2])
    return detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")


def _unquote(value: Any, wanted: Any) -> str:
    read = plain_scalar(value) if isinstance(value, str) else None
    return "; write it without quotes" if isinstance(read, wanted) and not isinstance(read, bool) else ""


def generic(loc: Loc) -> str:
    """``data.sources[].path`` for any index."""
    return ".".join("[]" if isinstance(part, int) else str(part) for part in loc).replace(".[]", "[]")


def nearest_key(loc: Loc, known: Sequence[str]) -> str | None:
    """The right key that a wrong one most likely stands for: spelt alike, better still in the same section."""
    leaf = str(loc[-1]).lower().replace("-", "_")
    if _ALSO_CALLED.get(leaf) in known:
        return _ALSO_CALLED[leaf]
    if len(leaf) > 40:
        return None
    parent = generic(loc[:-1])
    matcher = difflib.SequenceMatcher(b=leaf, autojunk=False)
    best, best_score = None, CUT_OFF
    for key in known:
        where, _, name = key.rpartition(".")
        if ".columns." in key and where != parent:
            continue  # words such as role and content, which mean something else everywhere else
        matcher.set_seq1(name)
        bonus = 0.15 if where == parent else 0.0
        # bounds from above that cost a hundredth: few keys are compared letter by letter
        if any(bound() + bonus <= best_score for bound in (matcher.real_quick_ratio, matcher.quick_ratio)):
            continue
        score = matcher.ratio() + bonus
        if score > best_score:
            best, best_score = key, score
    return best


def _instead(near: str | None, loc: Loc, known: Sequence[str]) -> str:
    """What an unknown key may have meant, or else the few that there are in its place."""
    section = generic(loc[:-1])
    if near is not None:
        where, _, name = near.rpartition(".")
        return f"; did you mean {dotted((*loc[:-1], name)) if where == section else near}?"
    names = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section]
    return f"; must be one of {', '.join(names)}" if 0 < len(names) <= MOST_KEYS else ""


def _meaning(field: FieldInfo | None) -> str:
    """``: a model folder or a hub name, such as tiny``, of a key that must be given."""
    if field is None:
        return ""
    first = " ".join((field.description or "").split()).partition(". ")[0].removesuffix(".")
    example = f", such as {flow(field.examples[0])}" if field.examples else ""
    return f": {first[:1].lower()}{first[1:]}{example}" if first else ""
