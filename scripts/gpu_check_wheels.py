"""Fetches into .gpu-check/ what make gpu-check needs without a network.

    python scripts/gpu_check_wheels.py [--python 3.12] [--out .gpu-check]

The versions are those of constraints.txt; flash-linear-attention is the rival. Together at most 60 MB, so that they can
be carried along with the working tree. The wheels are for Linux on x86-64.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINNED = ("datasets", "peft", "pydantic", "rich", "transformers", "trl", "typer")
# What these need and a machine with torch, transformers, pandas and pyarrow may lack. pydantic names its core exactly.
NEEDED = (
    "annotated-doc",
    "annotated-types",
    "dill<0.4.2",
    "multiprocess<0.70.20",
    "typing-extensions",
    "typing-inspection",
)
RIVALS = ("fla-core==0.6.0", "flash-linear-attention==0.6.0")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LARGEST = 60_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="of the GPU machine (default %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu-check")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("*.whl"):
        old.unlink()
    wanted = pinned((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    if download(options, [*wanted, *NEEDED, *RIVALS]) or download(options, [core_of(options.out)]):
        return 1
    size = sum(wheel.stat().st_size for wheel in options.out.glob("*.whl"))
    print(f"{options.out}: {len(list(options.out.glob('*.whl')))} wheels, {size / 1e6:.1f} MB")
    if size > LARGEST:
        print(f"that is more than {LARGEST / 1e6:.0f} MB, which is what can be carried along", file=sys.stderr)
        return 1
    return 0


def pinned(constraints: str) -> list[str]:
    """The lines of constraints.txt for what is carried."""
    lines = [line.strip() for line in constraints.splitlines()]
    return [line for line in lines if line.split("==")[0].lower() in PINNED]


def core_of(folder: Path) -> str:
    """pydantic's compiled half in the version that pydantic's wheel asks for."""
    from zipfile import ZipFile

    (wheel,) = folder.glob("pydantic-*.whl")
    with ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        about = archive.read(name).decode()
    line = next(line for line in about.splitlines() if line.startswith("Requires-Dist: pydantic-core=="))
    return line.split()[1]


def download(options: argparse.Namespace, requirements: list[str]) -> int:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", options.python, "--implementation", "cp", "--dest", str(options.out)]
    command += [part for platform in PLATFORMS for part in ("--platform", platform)]
    return subprocess.run([*command, *requirements], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
