"""Where the check finds libraries: this checkout, carried wheels."""

from __future__ import annotations

import importlib.util
import os
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / ".gpu-check"


def unpack(folder: Path) -> None:
    """The carried wheels: flash-linear-attention's to ``folder``/rivals, since transformers takes it wherever it finds
    it, the others to ``folder``/site. The machine's own libraries stay as they are. Nothing where they are for another
    Python."""
    wheels, own = sorted(WHEELS.glob("*.whl")), f"-cp3{sys.version_info.minor}-"
    if any("-cp3" in wheel.name and own not in wheel.name for wheel in wheels):
        return
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / ("rivals" if wheel.name.startswith(("fla_core", "flash_linear")) else "site"))


def environment(folder: Path, rivals: bool) -> dict[str, str]:
    """A step's: what was unpacked before the machine's own libraries, no network, one visible GPU."""
    paths = [str(folder / "site"), *([str(folder / "rivals")] if rivals else [])]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    given = {"CUDA_VISIBLE_DEVICES": first, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return os.environ | given | {"PYTHONPATH": os.pathsep.join(paths)}


def use_this_checkout() -> None:
    """Make it the package ``hybrid_ft``, whether one is installed or not, and the GPU benchmark's modules
    importable."""
    sys.path.append(str(ROOT / "benchmarks" / "gpu"))
    spec = importlib.util.spec_from_file_location(
        "hybrid_ft", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["hybrid_ft"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["hybrid_ft"])


def link_checkout(folder: Path) -> Path:
    """A folder for PYTHONPATH in which this checkout is ``hybrid_ft``, as if it were installed."""
    package = folder / "path" / "hybrid_ft"
    package.mkdir(parents=True)
    for name in ("__init__.py", "cli.py", "errors.py", "finetune", "hybrid_model", "kernels", "recipes", "datasets"):
        (package / name).symlink_to(ROOT / name)
    about = package.parent / "hybrid_ft-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: hybrid-ft\nVersion: 0\n")
    return package.parent
