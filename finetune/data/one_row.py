"""Finds one row of a recipe's data by its place, and encodes it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError, did_you_mean, shown
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.prepare import Kind, kind_of
from hybrid_ft.finetune.data.report.account import NOTES, SourceCounts
from hybrid_ft.finetune.data.report.count import split_origin
from hybrid_ft.finetune.data.report.whole_row import Token, TokenPart, WholeRow
from hybrid_ft.finetune.data.sources.rows import BadRow, origin
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.data.tokens.encoder import Encoder
from hybrid_ft.finetune.data.tokens.pieces import Pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe.data_section import Source
    from hybrid_ft.finetune.recipe.schema import Recipe

_NEAR = 2  # files named beside the one that is not read


def find_row(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, place: str) -> list[WholeRow]:
    """What became of the row at ``place`` (``FILE:LINE``, as the account writes it): several where it became several
    pairs, answers or pieces, or where several sources read it.

    Raises InputError for a place that the recipe reads no row at, with the nearest that it does, and for data that
    cannot be read. Other rows may be bad.
    """
    file, line = split_origin(place)
    if not file:
        raise InputError(f"--row: got {shown(place)}; must be FILE:LINE, such as rows.jsonl:12")
    encoder = Encoder.of(recipe, tokenizer)
    finder = _Finder(recipe, encoder, kind_of(recipe, encoder))
    keyed = [("data.sources", source) for source in recipe.data.sources]
    keyed += [("data.eval.sources", source) for source in recipe.data.eval.sources]
    read: list[str] = []
    found: list[WholeRow] = []
    nearest: list[str] = []
    for key, source in keyed:
        opened = open_source(source)
        read += opened.files
        name = next((name for name in opened.files if _same(name, file)), None)
        if name is None:
            continue
        rows = finder.rows(source, key, f"{name}:{line}")
        found += rows
        if not rows:
            fate = _unread(source, f"{name}:{line}", name, line)
            if isinstance(fate, WholeRow):
                fate.key = key
                found.append(fate)
            elif fate:
                nearest.append(fate)
    if found:
        return found
    if nearest:
        raise InputError(f"--row: no row that is read begins at {place}; the nearest is {nearest[0]}")
    if any(_same(name, file) for name in read):
        raise InputError(f"--row: no row of {file} is read")
    files = list(dict.fromkeys(read))
    reads = ", ".join(files[:_NEAR]) + (", ..." if len(files) > _NEAR else "")
    raise InputError(f"--row: the recipe reads no file {file}; it reads {reads}{did_you_mean(file, files)}")


def _same(name: str, file: str) -> bool:
    return name == file or (os.path.exists(name) and os.path.realpath(name) == os.path.realpath(file))


def _unread(source: Source, place: str, name: str, line: str) -> WholeRow | str | None:
    """What is known of a place at which no row came out: that there is a row; or else the nearest place of one."""
    opened = open_source(source)
    wanted = _numbers(line)
    near: tuple[tuple[int, ...], str] | None = None
    for row in opened.rows:
        at = origin(opened.name, row)
        if at == place:
            if source.only or source.without:
                return WholeRow(place, "", dropped="passed over, as only or without says")
            return WholeRow(place, "", notes=["its answer stands in the pair of the good answer to its prompt"])
        file, here = split_origin(at)
        if file == name:
            far = tuple(abs(one - other) for one, other in zip(_numbers(here), wanted, strict=True))
            if near is None or far < near[0]:
                near = far, at
    return near and near[1]


def _numbers(place: str) -> tuple[int, int]:
    """The line, and the row's number where several begin on it."""
    line, _, row = place.partition(" (row ")
    return int(line.partition(" ")[0]), int(row.rstrip(")")) if row else 0


class _Finder:
    """Reads sources up to a row, and encodes that alone."""

    def __init__(self, recipe: Recipe, encoder: Encoder, kind: Kind) -> None:
        self._recipe, self._way, self._encoder = recipe, kind.way, encoder
        self._pieces = Pieces(encoder.tokenizer, encoder.control)
        self._unit = "row" if recipe.of_pairs is None else "pair"

    def rows(self, source: Source, key: str, place: str) -> list[WholeRow]:
        found: list[WholeRow] = []
        for at, made in self._way.convert(source, SourceCounts(source.path)):
            if at == place:
                found += self._fates(made, at, self._full_key(source, key))
            elif found:  # what one row became comes without another's between
                break
        return found

    def _full_key(self, source: Source, key: str) -> str:
        """The key, and what is said of which of its rows are drawn."""
        held = self._recipe.data.eval
        drawn = []
        if key == "data.sources" and (held.fraction or held.count):
            drawn.append("of which data.eval holds some out")
        if source.count is not None or source.weight is not None:
            drawn.append("of which a part is taken")
        return ", ".join([key, *drawn]) + (": --out says which" if drawn else "")

    def _fates(self, made: Any, at: str, key: str) -> Iterator[WholeRow]:
        if isinstance(made, BadRow | Unusable):
            yield self._dropped(at, key, made)
            return
        tokens = next(iter(self._way.encode([made])))
        if isinstance(tokens, BadRow | Unusable):
            yield self._dropped(at, key, tokens)
            return
        whole = self._parts(tokens.columns())  # before it is cut
        try:
            fitted, happened = self._way.fit(tokens)
        except (BadRow, Unusable) as reason:
            row = self._dropped(at, key, reason)
            row.parts = whole
            yield row
            return
        notes = [
            f"{text} in the row's text, encoded as plain text" for text in sorted(set(tokens.control_tokens_as_text))
        ]
        several: Sequence[Any] = fitted if isinstance(fitted, Sequence) else [fitted]
        for number, one in enumerate(several, 1):
            piece = f", piece {number} of {len(several)}" if len(several) > 1 else ""
            counts = {kind: count for kind, count in (*made.noticed.items(), *happened.items()) if kind in NOTES}
            yield WholeRow(at + piece, key, self._unit, self._parts(one.columns()), None, counts, notes)

    def _dropped(self, at: str, key: str, reason: BadRow | Unusable) -> WholeRow:
        stops = reason.kind in self._way.stops or (isinstance(reason, BadRow) and self._way.bad_rows_stop)
        return WholeRow(at, key, self._unit, dropped=f"{reason}" + ("; it stops the run" if stops else ""))

    def _parts(self, columns: dict[str, Any]) -> list[TokenPart]:
        if "input_ids" in columns:
            ids, labels = (list(map(int, columns[name])) for name in ("input_ids", "labels"))
            weights = columns["weights"] or [1.0] * len(labels)
            learned = [0.0 if label == -100 else one for label, one in zip(labels, weights, strict=True)]
            return [self._part("", ids, learned)]
        parts = [self._part("prompt", columns["prompt_ids"], [0.0] * len(columns["prompt_ids"]))]
        for name in ("chosen", "rejected", "completion"):
            if (answer := columns.get(f"{name}_ids")) is not None:
                heading = f"{name}, judged {'good' if columns['label'] else 'bad'}" if "label" in columns else name
                parts.append(self._part(heading, answer, [1.0] * len(answer)))
        return parts

    def _part(self, heading: str, ids: list[int], weights: list[float]) -> TokenPart:
        tokens = [Token(index, self._pieces(index), weight) for index, weight in zip(ids, weights, strict=True)]
        return TokenPart(tokens, heading)
