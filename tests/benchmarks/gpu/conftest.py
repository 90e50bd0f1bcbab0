"""The modules of the GPU's benchmark, on a machine without a GPU."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parent))  # pytest imports a test file by its path, and so not its neighbours

MODULES = (
    "rows",
    "table",
    "common",
    "checks",
    "theirs",
    "delta_rule",
    "linearity",
    "layer",
    "attention",
    "log_probs",
    "trainers",
    "step",
    "decode",
)


@pytest.fixture
def bench(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The folder's modules, and ``run``, which prints the table from children in this process."""
    folder = root / "benchmarks" / "gpu"
    monkeypatch.syspath_prepend(str(folder))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("bench_gpu_main", folder / "__main__.py")
    assert spec is not None and spec.loader is not None
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    modules = {name: importlib.import_module(name) for name in MODULES}
    yield SimpleNamespace(main=main, **modules)
    for name in MODULES:
        sys.modules.pop(name, None)
