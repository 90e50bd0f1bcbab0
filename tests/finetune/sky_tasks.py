"""What SkyPilot does with a task: its files are brought, its last command is split."""

import os
import shlex
import shutil
from pathlib import Path


def bring(task: dict, home: Path) -> Path:
    """Does what SkyPilot does with the files. Returns the folder of the command."""
    for there, here in task["file_mounts"].items():
        if isinstance(here, str):
            target = home / there.removeprefix("~/")
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if os.path.isdir(here) else shutil.copy)(here, target)
    return home / "hybrid-ft"


def command(run: str) -> list[str]:
    """The words of the task's last command, as a shell splits them."""
    return shlex.split(run.partition("exec ")[2].replace("\\\n", " "))
