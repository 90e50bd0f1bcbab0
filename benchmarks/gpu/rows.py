"""The table's rows, each with its bar and the part that measures it.

A part is one child process: a module of this folder whose ``measure(setting, *arguments)`` returns one record for each
of the part's rows, in their order. This file imports nothing, so that the table can be printed on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """A limit on a record's number: ``of`` is ours, theirs over ours (ratio) or ours over theirs (share)."""

    of: str
    at_least: bool
    limit: float

    def text(self, unit: str) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.limit:g} {unit}" if self.of == "ours" else f"{self.of} {sign} {self.limit:g}"

    def met(self, number: float) -> bool:
        return number >= self.limit if self.at_least else number <= self.limit


@dataclass(frozen=True)
class Row:
    """``more_is_better`` decides which side of a ratio stands above: rates and times give the same one."""

    name: str
    label: str
    unit: str
    bar: Bar
    more_is_better: bool = False


@dataclass(frozen=True)
class Part:
    module: str
    arguments: tuple[int | bool, ...]
    rows: tuple[Row, ...]


def _sequences(count: int) -> str:
    return "1 sequence" if count == 1 else f"{count} sequences"


def _op(count: int) -> Part:
    label = f"delta rule, {_sequences(count)}"
    return Part(
        "delta_rule",
        (count,),
        (
            Row(f"op-{count}.forward", f"{label}, forward", "ms", Bar("ours", False, 0.85)),
            Row(f"op-{count}.backward", f"{label}, backward", "ms", Bar("ours", False, 2.4)),
            Row(f"op-{count}.both", f"{label}, both", "ms", Bar("ratio", True, 2)),
        ),
    )


def _layer(count: int) -> Part:
    label = f"delta layer, {_sequences(count)}"
    return Part(
        "layer",
        (count,),
        (
            Row(f"layer-{count}.time", f"{label}, forward and backward", "ms", Bar("ratio", True, 1.4)),
            Row(f"layer-{count}.memory", f"{label}, peak memory", "GiB", Bar("share", False, 0.7)),
        ),
    )


def _attention(count: int) -> Part:
    label = f"attention, {_sequences(count)}, forward and backward"
    return Part("attention", (count,), (Row(f"attention-{count}", label, "ms", Bar("ratio", True, 1)),))


def _step(count: int, lora: bool) -> Part:
    name, label = ("lora", "LoRA step") if lora else ("full", "full step")
    row = Row(f"{name}-{count}", f"{label}, {_sequences(count)}", "tokens/s", Bar("ratio", True, 1.2), True)
    return Part("step", (count, lora), (row,))


def _decode(batch: int) -> Part:
    row = Row(f"decode-{batch}", f"decode, batch {batch}", "tokens/s", Bar("ratio", True, 1.5), True)
    return Part("decode", (batch,), (row,))


PARTS: dict[str, Part] = {
    "op-1": _op(1),
    "op-8": _op(8),
    "linearity": Part(
        "linearity",
        (),
        (Row("linearity", "delta rule, time per token from shortest to longest", "% apart", Bar("ours", False, 10)),),
    ),
    "layer-1": _layer(1),
    "layer-8": _layer(8),
    "attention-1": _attention(1),
    "attention-8": _attention(8),
    "log-probs": Part(
        "log_probs",
        (),
        (Row("log-probs", "token log-probabilities, forward and backward", "ms", Bar("ratio", True, 1.15)),),
    ),
    "full-1": _step(1, False),
    "full-8": _step(8, False),
    "lora-1": _step(1, True),
    "lora-8": _step(8, True),
    "decode-1": _decode(1),
    "decode-32": _decode(32),
}
