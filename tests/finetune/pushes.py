"""A stand-in for the hub, and the command that sends to it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from hybrid_ft import cli

LORA = {"lora": {"targets": "all-linear", "rank": 4, "alpha": 8}}


SECRET = "hf_" + "Ab3" * 10


class Hub:
    """Stands for huggingface_hub's HfApi: keeps what it was asked, and the content of every file that it was sent."""

    def __init__(self) -> None:
        self.repos: dict[str, bool] = {}
        self.sent: dict[str, bytes] = {}
        self.refuses: Exception | None = None

    def __call__(self) -> "Hub":
        return self

    def create_repo(self, name: str, *, private: bool | None, exist_ok: bool) -> Any:
        if self.refuses:
            raise self.refuses
        assert exist_ok
        full = name if "/" in name else f"someone/{name}"
        self.repos.setdefault(full, bool(private))

        class Url(str):
            repo_id = full

        return Url(f"https://huggingface.co/{full}")

    def repo_info(self, name: str) -> Any:
        return SimpleNamespace(private=self.repos[name])

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        assert repo_id in self.repos
        self.sent = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


def push(*arguments: Any) -> int:
    return cli.main(["push", *map(str, arguments)])


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])
