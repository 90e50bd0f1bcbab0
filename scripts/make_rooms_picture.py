"""Makes docs/images/rooms.svg: which folder of the code imports which.

    .venv/bin/python scripts/make_rooms_picture.py [--root CHECKOUT] [--out FILE]

A row imports the columns in which it is marked. Rooms stand above those that they import, so that a mark below the
diagonal, drawn in red, is an import that runs back up, or part of a circle. How many files do so is not drawn: the
picture changes with the rooms alone.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
FOLDERS = ("kernels", "hybrid_model", "finetune", "commands")
"""The code, lower first; what lies beside them is above them all."""
OPEN = {"hybrid_model", "finetune"}
"""Folders whose own folders and files are rooms."""
CELL, LABEL, SIZE = 20, 250, 11


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Every module of the package and its file."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            yield ".".join(("hybrid_ft", *path.relative_to(root).with_suffix("").parts)), path
    yield "hybrid_ft.cli", root / "cli.py"


@cache
def imported(name: str, path: Path) -> frozenset[str]:
    """Every module of the package that a file imports anywhere, inside functions and under TYPE_CHECKING too."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    if package[-1] == "__init__":
        package = package[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(module for module in found if module.split(".")[0] == "hybrid_ft")


def imports(root: Path) -> dict[str, set[str]]:
    """Every module of the package and the modules that it imports; a folder's face is its ``__init__``."""
    files = dict(modules(root))
    faces = {name.removesuffix(".__init__"): name for name in files if name.endswith(".__init__")}
    return {
        name: {faces.get(module, module) for module in imported(name, path)} & files.keys() - {name}
        for name, path in files.items()
    }


def room(module: str) -> str:
    """``hybrid_ft.finetune.data.tokens.encode`` is in ``finetune/data``."""
    parts = module.removesuffix(".__init__").split(".")[1:]
    return "/".join(parts[: 2 if parts[0] in OPEN else 1])


def edges(root: Path) -> Counter[tuple[str, str]]:
    """(room, room that it imports) and the number of pairs of files; a folder's face belongs to no room."""
    found: Counter[tuple[str, str]] = Counter()
    for name, others in imports(root).items():
        for pair in {(name, other) for other in others}:
            here, there = map(room, pair)
            if here != there and not {here, there} & OPEN:
                found[here, there] += 1
    return found


def order(found: Counter[tuple[str, str]]) -> list[str]:
    """Rooms, the highest first. Where they import in circles, the cheapest import is taken to run upwards."""
    kept = dict(found)
    while True:
        graph = {name: {there for here, there in kept if here == name} for pair in kept for name in pair}
        try:
            low_first = list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            circle = error.args[1]
            del kept[min(((here, there) for there, here in pairwise(circle)), key=lambda pair: kept[pair])]
            continue
        height: dict[str, int] = {}
        for name in low_first:
            height[name] = 1 + max((height[other] for other in graph[name]), default=-1)
        rank = {name: number for number, name in enumerate(FOLDERS)}
        return sorted(height, key=lambda name: (-rank.get(name.split("/")[0], len(rank)), -height[name], name))


def draw(found: Counter[tuple[str, str]]) -> str:
    """The matrix as SVG; a cell's ``title`` is ``ROOM imports ROOM``."""
    rooms = order(found)
    at = {name: number for number, name in enumerate(rooms)}
    side = len(rooms) * CELL
    size = LABEL + side + 10
    font = f'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="{SIZE}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" {font}>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for number, name in enumerate(rooms):
        middle = LABEL + number * CELL + CELL / 2
        fill = "#f4f6f8" if number % 2 else "#ffffff"
        lines += [
            f'<rect x="0" y="{middle - CELL / 2:g}" width="{LABEL + side}" height="{CELL}" fill="{fill}"/>',
            f'<text x="{LABEL - 8}" y="{middle + 4:g}" text-anchor="end">{escape(name)}</text>',
            f'<text x="{middle + 4:g}" y="{LABEL - 8}" transform="rotate(-90 {middle + 4:g} {LABEL - 8})">{escape(name)}</text>',
            f'<rect x="{middle - CELL / 2:g}" y="{middle - CELL / 2:g}" width="{CELL}" height="{CELL}" fill="#c9d2dc"/>',
        ]
    for here, there in sorted(found):
        x, y, upwards = LABEL + at[there] * CELL, LABEL + at[here] * CELL, at[there] < at[here]
        lines.append(
            f"<g><title>{escape(here)} imports {escape(there)}</title>"
            f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="{"#d62728" if upwards else "#1f77b4"}"/></g>'
        )
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw which folder of the code imports which.")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to draw")
    parser.add_argument("--out", type=Path, default=PICTURE, help="the SVG file to write")
    options = parser.parse_args()
    options.out.write_text(draw(edges(options.root)), encoding="utf-8")


if __name__ == "__main__":
    main()
