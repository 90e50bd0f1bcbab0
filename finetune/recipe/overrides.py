"""``key=value`` from the command line, laid over a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hybrid_ft.errors import shown
from hybrid_ft.finetune.recipe.mistakes import Mistakes, Place
from hybrid_ft.finetune.recipe.yaml_file import Loc, dotted, read_value


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str], mistakes: Mistakes) -> None:
    """Change ``raw`` in place. A later override wins over an earlier one; a key that no recipe has is the schema's to
    refuse."""
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.split(".")
        if not equals or "" in parts:
            mistakes.add(Place(0, f"override {shown(override)}"), "must be key=value, such as train.learning_rate=1e-4")
            continue
        place = Place(0, f"override {dotted(tuple(parts))}")
        try:
            mistakes.written_at(_set(raw, parts, read_value(text)), place)
        except ValueError as error:
            mistakes.add(place, str(error))


def _set(raw: dict[str, Any], parts: list[str], value: Any) -> Loc:
    """Put ``value`` at the dotted key, making mappings on the way where there is nothing.

    Returns the outermost place that changed hands: the first mapping made, or else the key itself.
    """
    node: Any = raw
    loc: Loc = ()
    made: Loc | None = None
    for depth, part in enumerate(parts):
        so_far = dotted(tuple(parts[:depth]))
        if isinstance(node, list):
            if not part.isascii() or not part.isdigit() or int(part) >= len(node):
                last = len(node) - 1
                numbers = "it is empty" if last < 0 else "must be 0" if last == 0 else f"must be 0 to {last}"
                raise ValueError(f"{so_far} has no item {shown(part)}; {numbers}")
            step: str | int = int(part)
        elif isinstance(node, dict):
            step = part
        else:
            raise ValueError(f"{so_far} is {shown(node)}, which has no key {shown(part)}")  # noqa: TRY004 the user's mistake
        loc = (*loc, step)
        if depth == len(parts) - 1:
            node[step] = value
            break
        if isinstance(node, dict) and node.get(part) is None:
            node[step] = {}
            made = made or loc
        node = node[step]
    return made or loc
