"""A SkyPilot task: a managed job that is started anew after status 75."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hybrid_ft.errors import RESUMABLE, InputError, one_line
from hybrid_ft.finetune.renting.inputs import check_without_links
from hybrid_ft.finetune.renting.install import Install, install
from hybrid_ft.finetune.renting.job import COPIES, Job, check_printable, readable, words
from hybrid_ft.finetune.renting.kinds import accelerators

HOME = "~/hybrid-ft"
"""The folder on the machine that holds recipe, inputs and environment."""
DISK = 512  # GB: libraries, a 7B, its data, and the checkpoints that wait for their upload
PYTHON = "3.12"
_CHECK = "import sys, sky; sky.Task.from_yaml(sys.argv[1])"


def task(job: Job) -> str:
    """The task's YAML. Raises InputError for what cannot be brought or installed."""
    order = job.order
    check_without_links(job.brought)
    found = None if order.image and order.package is None else install(order.package, job.recipes)
    files = {f"{HOME}/{there}": here for item in job.brought for there, here in item.files.items()}
    files |= {f"{HOME}/{there}": here for there, here in job.beside.items()}
    if job.file is not None:
        files[f"{HOME}/{job.name}.yaml"] = str(job.file)
    if found is not None and found.wheel is not None:
        files[f"{HOME}/{found.wheel.name}"] = str(found.wheel)
    check_printable(list(files.values()))
    resources: dict[str, Any] = {
        "accelerators": accelerators(order.gpu or "", order.gpus),
        "use_spot": order.spot,
        "disk_size": DISK,
        # a machine that was taken away is always replaced; this is for a run that had the time to save
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [RESUMABLE]},
    }
    if order.image is not None:
        resources["image_id"] = f"docker:{order.image}"
    # MOUNT, not MOUNT_CACHED: what is closed is in the bucket, so an old copy goes only after the new one is there
    bucket = {} if job.kept is None else {COPIES: {"source": order.bucket, "mode": "MOUNT"}}
    mounts: dict[str, Any] = {**files, **bucket}
    wanted = {
        "name": job.name,
        "resources": resources,
        # the values come from the environment of whoever starts it: sky jobs launch --secret NAME
        **({"secrets": dict.fromkeys(order.secret)} if order.secret else {}),
        **({"file_mounts": mounts} if mounts else {}),
        **({"setup": _setup(found)} if found is not None else {}),
        "run": _run(job, found),
    }
    return readable(wanted)


def _setup(found: Install) -> str:
    package = f"./{found.package}" if found.wheel else found.package
    return "\n".join(
        [
            "set -e",
            f"mkdir -p {HOME} && cd {HOME}",
            'export PATH="$HOME/.local/bin:$PATH"',
            "command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh",
            f"uv venv --allow-existing --python {PYTHON} .venv",
            words(["uv", "pip", "install", "--python", ".venv/bin/python", package, *found.libraries]),
            "",
        ]
    )


def _run(job: Job, found: Install | None) -> str:
    program = ".venv/bin/hybrid-ft" if found is not None else "hybrid-ft"
    return "\n".join([f"mkdir -p {HOME} && cd {HOME}", f"exec {words([program, *job.elsewhere()])}", ""])


def check(text: str, folder: Path) -> bool:
    """Whether SkyPilot is installed and takes the task. Raises InputError where it does not."""
    python = _python()
    if python is None:
        return False
    file = folder / f".hybrid-ft-{os.getpid()}.yaml"
    try:
        file.write_text(text, encoding="utf-8")
        environment = os.environ | {"SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
        done = subprocess.run(
            [python, "-c", _CHECK, file], env=environment, capture_output=True, text=True, check=False
        )
    finally:
        file.unlink(missing_ok=True)
    if done.returncode:
        said = (done.stderr.strip() or "no reason").splitlines()[-1]
        raise InputError(f"SkyPilot does not take the task: {one_line(said)}")
    return True


def _python() -> str | None:
    """The interpreter that has SkyPilot: this one, or that of the ``sky`` command, which has an
    environment of its own."""
    found = find_spec("sky")
    if found is not None and found.origin is not None:  # not a folder of that name in the current one
        return sys.executable
    command = shutil.which("sky")
    if command is None:
        return None
    with open(command, "rb") as file:
        first = file.readline(4096).decode("utf-8", errors="replace").strip()
    python = first.removeprefix("#!").strip()
    return python if os.path.basename(python).startswith("python") and os.access(python, os.X_OK) else None


def command(job: Job, file: Path) -> list[str]:
    """What starts the task."""
    return ["sky", "jobs", "launch", *(part for name in job.order.secret for part in ("--secret", name)), str(file)]


def start(job: Job, file: Path) -> int:
    """Start it; SkyPilot shows the price and asks. Returns its status."""
    return subprocess.run(command(job, file), check=False).returncode
