"""The layout's rules, each of which breaks something silently when it is broken."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from make_rooms_picture import FOLDERS, PICTURE, draw, edges, imported, imports, modules

# Where nothing that the project keeps lies: made by tools, or by runs.
NOT_OURS = {
    ".git",
    ".venv",
    ".venv-oldest",
    ".typing",
    "build",
    "runs",
    "__pycache__",
    ".hypothesis",
    ".pytest_cache",
    ".mypy_cache",
}
NOT_OURS |= {".ruff_cache", ".device"}


@pytest.mark.parametrize("folder", ["kernels", "datasets"])
def test_no_init_in_folders_named_like_hugging_face_packages(root: Path, folder: str) -> None:
    """`python -m` from the root puts the root on sys.path: with an __init__.py our folder would be imported in place
    of Hugging Face's package, without one that package wins (PEP 420)."""
    assert (root / folder).is_dir()
    assert not (root / folder / "__init__.py").exists()


def test_datasets_and_recipes_hold_no_code(root: Path) -> None:
    assert [path for folder in ("datasets", "recipes") for path in (root / folder).rglob("*.py")] == []


def test_every_code_folder_is_declared(root: Path) -> None:
    """A folder that is missing from pyproject.toml works in an editable install and is absent from the wheel."""
    declared = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {"hybrid_ft"}
    for _, path in modules(root):
        parts = path.parent.relative_to(root).parts
        found |= {".".join(("hybrid_ft", *parts[:depth])) for depth in range(1, len(parts) + 1)}
    assert sorted(declared) == sorted(found)


def test_root_holds_no_stray_modules(root: Path) -> None:
    """Every *.py in the root goes into the wheel as hybrid_ft/*.py."""
    assert {path.name for path in root.glob("*.py")} == {"__init__.py", "cli.py", "errors.py"}


def test_imports_point_one_way(root: Path) -> None:
    """kernels <- hybrid_model <- finetune <- commands <- cli."""
    order = {f"hybrid_ft.{name}": rank for rank, name in enumerate((*FOLDERS, "cli"))}
    wrong = []
    seen = 0
    for name, path in modules(root):
        here = order[".".join(name.split(".")[:2])]
        for module in imported(name, path):
            there = order.get(".".join(module.split(".")[:2]), -1)
            seen += there >= 0
            if there > here:
                wrong.append(f"{name} imports {module}")
    assert seen > 50
    assert wrong == []


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that reach themselves by way of others, each group once."""
    reached: dict[str, set[str]] = {}
    for start, first in graph.items():
        seen: set[str] = set()
        rest = list(first)
        while rest:
            module = rest.pop()
            if module not in seen:
                seen.add(module)
                rest += graph[module]
        reached[start] = seen
    groups = {frozenset({name} | {other for other in reached[name] if name in reached[other]}) for name in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def test_circles_are_found() -> None:
    graph: dict[str, set[str]] = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a", "f"}, "f": {"e"}}
    assert circles(graph) == [["b", "c"], ["e", "f"]]


def test_no_circle_between_files(root: Path) -> None:
    """Imports inside functions and under TYPE_CHECKING count: a reader follows those as well."""
    assert circles(imports(root)) == []


# Lower rooms first; rooms in one tuple do not know each other's order. A module that stands in no list is
# above them all.
ROOMS = (
    ("disk",),
    ("recipe",),
    ("data",),
    ("runs", "machines"),
    ("mirror",),
    ("models",),
    ("generation",),
    ("evaluation",),
    ("reports",),
    ("training",),
    ("conversion", "doctor", "hub", "planning"),
    ("renting",),
    ("pipeline", "study"),
)
DATA_ROOMS = (("limits", "packing"), ("sources",), ("messages",), ("tokens",), ("report",))


@pytest.mark.parametrize(
    ("inside", "rooms"), [("hybrid_ft.finetune.", ROOMS), ("hybrid_ft.finetune.data.", DATA_ROOMS)]
)
def test_rooms_import_from_those_below(root: Path, inside: str, rooms: tuple[tuple[str, ...], ...]) -> None:
    rank = {room: number for number, group in enumerate(rooms) for room in group}
    edges = [
        (name, module)
        for name, found in imports(root).items()
        for module in found
        if name.startswith(inside) and module.startswith(inside) and not module.endswith(".__init__")
    ]

    def height(module: str) -> int:
        return rank.get(module.removeprefix(inside).split(".")[0], len(rooms))

    assert len({height(name) for name, _ in edges}) >= len(rooms) - 2
    upwards = {f"{name} -> {module}" for name, module in edges if height(module) > height(name)}
    assert upwards == set()


def test_the_picture_shows_the_rooms_as_they_are(root: Path) -> None:
    drawn = re.findall(r"<title>(\S+) imports (\S+)</title>", PICTURE.read_text(encoding="utf-8"))
    assert sorted(drawn) == sorted(edges(root)), "run make docs"


def test_the_picture_changes_with_the_rooms_alone(root: Path) -> None:
    """Else every two changes that each add an import would be in each other's way."""
    found = edges(root)
    counted = draw(Counter({pair: 7 for pair in found}))
    # where rooms import in circles, the counts say which import is taken to run upwards
    assert counted == draw(found)
    back = draw(found + Counter([("kernels", "finetune/recipe")]))
    assert back.count("#d62728") == 1 and "<title>kernels imports finetune/recipe</title>" in back


def test_kernels_know_nothing_of_transformers(root: Path) -> None:
    libraries = {"transformers", "trl", "peft", "accelerate", "datasets"}
    for path in (root / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not libraries & {name.split(".")[0] for name in names}, path


def test_packages_start_light(root: Path) -> None:
    """What every command imports first: `hybrid-ft --help` must answer before torch could have been imported."""
    code = (
        "import sys, hybrid_ft, hybrid_ft.cli, hybrid_ft.hybrid_model, hybrid_ft.finetune\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'datasets', 'trl', 'numpy', 'pydantic', 'yaml'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "start",
    [["-m", "hybrid_ft.cli"], ["cli.py"], ["-c", "import sys; from hybrid_ft.cli import main; sys.exit(main())"]],
    ids=["module", "file", "code"],
)
def test_hugging_face_packages_are_not_shadowed(root: Path, tmp_path: Path, start: list[str]) -> None:
    """However the program is started from a checkout, `datasets` is Hugging Face's."""
    report = tmp_path / "sitecustomize.py"
    report.write_text(
        "import atexit, importlib.util, sys\n"
        "def where():\n"
        "    spec = importlib.util.find_spec('datasets')\n"
        "    print('datasets is', spec.origin)\n"
        "atexit.register(where)\n"
    )
    env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"} | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, *start, "--version"], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = re.search(r"datasets is (.+)", run.stdout)
    assert found is not None
    assert Path(found[1]).name == "__init__.py"
    assert not Path(found[1]).is_relative_to(root / "datasets")


def test_nothing_of_one_machine_is_kept(root: Path) -> None:
    """Nothing in the repository refers to a home, a mount or a work folder of whoever wrote it, or
    to a package index."""
    machine = re.compile(r"(?<![\w.])/(?:home|root|Users|work|mnt|opt)/\w+|pypi\.org|pythonhosted|download\.pytorch")
    suffixes = {".py", ".yaml", ".yml", ".toml", ".md", ".txt", ".json", ".jsonl", ".jinja", ""}
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_OURS and not name.endswith(".egg-info")]
        for path in (Path(folder) / name for name in files if name not in NOT_OURS):
            if path.suffix in suffixes and path != Path(__file__) and path.stat().st_size < 2_000_000:
                found += [
                    f"{path}: {match[0]}"
                    for match in machine.finditer(path.read_text(encoding="utf-8", errors="replace"))
                ]
    assert found == []


def test_a_file_begins_with_what_it_is(root: Path) -> None:
    """In 14 words at most; every public class says what it is."""
    files = [path for folder in (*FOLDERS, "benchmarks", "scripts") for path in sorted((root / folder).rglob("*.py"))]
    long, silent = [], []
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if len(((ast.get_docstring(tree) or "").splitlines() or [""])[0].split()) > 14:
            long.append(path)
        if path.relative_to(root).parts[0] in FOLDERS:
            classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]
            silent += [f"{path}: {node.name}" for node in classes if not ast.get_docstring(node)]
    assert (long, silent) == ([], [])


def test_messages_use_the_fields_words(root: Path) -> None:
    """A string is a string, and what is wrong is not a such and such."""
    foreign = re.compile(
        r"must be (?:a|an|no) texts?\b|taken for meant|\bis no (?:JSON|text|number|string|word|list)\b"
    )
    files = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    found = [(path.name, match[0]) for path in files for match in foreign.finditer(path.read_text(encoding="utf-8"))]
    assert len(files) > 100 and found == []


LARGE = 100
"""lines of code, docstrings and comments aside, from which a file has tests of its own name"""


def lines_of_code(text: str) -> int:
    """Without blank lines, comments and strings that stand alone."""
    alone = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    told = {line for node in alone for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return sum(
        number not in told and bool(line.strip()) and not line.lstrip().startswith("#")
        for number, line in enumerate(text.splitlines(), 1)
    )


def untested(root: Path) -> list[str]:
    """Large files for which there is neither ``tests/PLACE/test_NAME.py`` nor a folder ``tests/PLACE/NAME`` of
    tests."""
    found = []
    for _, path in modules(root):
        place, name = root / "tests" / path.parent.relative_to(root), path.stem
        if path.parent.name == "gpu":
            # Triton's kernels run by their launches alone, in a process of their own or on a GPU: an op's, all together
            own = list(place.parent.glob("test_triton*.py"))
        else:
            own = [*place.glob(f"test_{name}.py"), *(place / name).glob("test_*.py")]
        if not own and lines_of_code(path.read_text(encoding="utf-8")) >= LARGE:
            found.append(str(path.relative_to(root)))
    return found


def test_the_test_of_a_rule_is_found_by_the_path_of_its_file(root: Path) -> None:
    assert untested(root) == []


def test_a_file_without_tests_of_its_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '"""What it is."""\n\n# why\n' + "x = 1\n" * LARGE
    assert lines_of_code(text) == LARGE
    for name in ("finetune/a.py", "finetune/b.py", "finetune/c.py", "finetune/small.py", "kernels/op/gpu/d.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if path.stem != "small" else text[:-6])
    for name in ("finetune/test_a.py", "finetune/b/test_of_it.py", "finetune/test_others.py"):
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [(path.stem, path) for path in sorted(tmp_path.rglob("*.py")) if "tests" not in path.parts]
    monkeypatch.setattr(sys.modules[__name__], "modules", lambda root: found)
    assert untested(tmp_path) == ["finetune/c.py", "kernels/op/gpu/d.py"]
    (tmp_path / "tests/kernels/op").mkdir(parents=True)
    (tmp_path / "tests/kernels/op/test_triton.py").touch()
    assert untested(tmp_path) == ["finetune/c.py"]
