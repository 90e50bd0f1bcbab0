"""Installs the torch build that fits this machine.

On Linux the default package is the CUDA build with its libraries, about 5 GB, and the CPU build a tenth of that.

no NVIDIA GPU   the CPU build: from wherever pip is configured to look, else from PyTorch's own package index, which
                uv knows by name (its --torch-backend); else, with a warning, the default package
NVIDIA GPU      the CUDA build, even where pip is configured to offer a CPU build of the same version, which would
                otherwise win: a version with a local part (+cpu) counts as newer

A torch that is installed already is kept if it loads and is not a CPU build on a machine with a GPU.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "2.13.0"
LOWEST = (2, 11)


def main() -> int:
    gpu = has_nvidia_gpu()
    found = installed()
    if is_fit(found, gpu):
        return 0
    if found is None:  # there may be a broken one, left by an interrupted set-up, which pip would take for whole
        subprocess.run(
            [sys.executable, "-m", "pip", "uninstall", "-q", "-y", "torch"], stderr=subprocess.DEVNULL, check=False
        )
    if gpu:
        # === compares the text of the version, so that 2.13.0+cpu is no match
        if not pip(f"torch==={VERSION}"):
            pip(f"torch=={VERSION}", show=True)
    elif platform.system() != "Linux":
        pip(f"torch=={VERSION}", show=True)
    elif not (pip(f"torch==={VERSION}+cpu") or uv_cpu()):
        say(
            f"no CPU build of torch {VERSION} can be reached; installing the default one, several GB. TORCH= says otherwise"
        )
        pip(f"torch=={VERSION}", show=True)
    found = installed()
    if not is_fit(found, gpu):
        build = "none that loads" if found is None else f"{found[0]}, a CPU build, on a machine with an NVIDIA GPU"
        say(f"torch is {build}; set TORCH= to what pip should install, such as TORCH='torch=={VERSION}'")
        return 1
    return 0


def has_nvidia_gpu() -> bool:
    """Whether the driver is there; nothing has to be installed for asking."""
    if any(Path(path).exists() for path in ("/dev/nvidiactl", "/proc/driver/nvidia/version")):
        return True
    smi = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"
    try:
        listed = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def installed() -> tuple[str, str | None] | None:
    """Version and CUDA version of the torch that loads here, in a fresh process; None if none does."""
    code = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda]))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        return None
    version, cuda = json.loads(run.stdout.splitlines()[-1])
    return version, cuda


def is_fit(found: tuple[str, str | None] | None, gpu: bool) -> bool:
    if found is None:
        return False
    version, cuda = found
    major, minor = (int(part) for part in version.split(".")[:2])
    return (major, minor) >= LOWEST and not (gpu and cuda is None and "rocm" not in version)


def pip(*arguments: str, show: bool = False) -> bool:
    """``pip install``; what it says is shown only where there is no other way left to try."""
    command = [sys.executable, "-m", "pip", "install", "-q", *arguments]
    return subprocess.run(command, stderr=None if show else subprocess.DEVNULL, check=False).returncode == 0


def uv_cpu() -> bool:
    """The CPU build through uv. Only torch itself: pip then adds what it needs from where pip is configured to look."""
    if not pip("uv"):
        return False
    uv = Path(sys.executable).parent / "uv"
    command = [uv, "pip", "install", "-q", "--python", sys.executable, "--no-deps", "--torch-backend=cpu"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    done = subprocess.run(
        [*command, f"torch=={VERSION}"], env={**os.environ, "UV_HTTP_TIMEOUT": "120"}, check=False, **quiet
    )
    return done.returncode == 0 and pip(f"torch=={VERSION}")


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
