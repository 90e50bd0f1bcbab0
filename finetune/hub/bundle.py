"""What of a result's folder goes to the hub, and what may not."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hybrid_ft.errors import InputError, holds_secret
from hybrid_ft.hybrid_model.checkpoint import adapter_files
from hybrid_ft.hybrid_model.checkpoint.config import json_object, read_config
from hybrid_ft.hybrid_model.checkpoint.weight_files import check_weight_files, read_header, read_headers

Kind = Literal["model", "adapter", "gguf"]

CARD = "README.md"
_SENT = re.compile(
    r".*\.(safetensors|gguf)|model\.safetensors\.index\.json|(adapter_|generation_|tokenizer_)?config\.json"
    r"|tokenizer\.(json|model)|(special_tokens_map|added_tokens|vocab)\.json|merges\.txt|chat_template\.(jinja|json)"
    r"|(video_)?(pre)?processor_config\.json|README\.md|(LICENSE|NOTICE)(\.txt|\.md)?"
)
_LARGE_JSON = re.compile(r"tokenizer\.json|vocab\.json|.*\.index\.json")
_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w.-]+", re.ASCII)
# transformers writes into these what was typed when the model was loaded
_TYPED = ("_name_or_path", "name_or_path")


@dataclass(frozen=True)
class Bundle:
    """``files`` go as they lie, ``rewritten`` with other content; ``left`` stay here. ``base``:
    what an adapter names."""

    folder: Path
    kind: Kind
    files: list[Path]
    rewritten: dict[str, str]
    left: list[str]
    base: str | None

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files) + sum(len(text) for text in self.rewritten.values())

    @property
    def scores(self) -> bool:
        """Whether it is a reward model, or an adapter that makes one of its base."""
        if self.kind == "adapter":
            return adapter_files.scores(adapter_files.read_config(self.folder))
        names = json_object(self.folder / "config.json").get("architectures") if self.kind == "model" else None
        return any(str(name).endswith("ForSequenceClassification") for name in names or ())

    def fill(self, place: Path) -> None:
        """Make ``place`` what is to be sent; files as links."""
        for path in self.files:
            (place / path.name).symlink_to(path.absolute())
        for name, text in self.rewritten.items():
            (place / name).write_text(text, encoding="utf-8")


def hub_name(name: str | None) -> str | None:
    """A base's or dataset's name if it is one of the hub's, and no place on this machine."""
    if name is None or os.path.exists(name) or not _HUB_NAME.fullmatch(name):
        return None
    return name


def read_bundle(folder: Path, base: str | None = None) -> Bundle:
    """A folder with a model, an adapter or GGUF files. ``base``: the hub's name of an adapter's base.

    Raises InputError for a folder that holds none of them, for weights that are not whole, for an adapter whose base
    only this machine has, and for a file that holds a credential.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name a model's, an adapter's or a folder of GGUF files")
    kind = _kind(folder)
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in entries if path.is_file() and _SENT.fullmatch(path.name)]
    left = [path.name for path in entries if path not in files]
    rewritten: dict[str, str] = {}
    if kind == "adapter":
        raw = adapter_files.read_config(folder)
        given, named = base, hub_name(raw["base_model_name_or_path"])
        base = given or named
        if base is None:
            raise InputError(
                f"{folder / adapter_files.CONFIG}: its base is {raw['base_model_name_or_path']}, which only this machine "
                "has; say what the hub calls it by --base OWNER/NAME, or merge the adapter and push the model"
            )
    for path in files:
        if path.suffix == ".json" and not _LARGE_JSON.fullmatch(path.name):
            text = _without_places(path, base if kind == "adapter" else None)
            if text is not None:
                rewritten[path.name] = text
    kept = [path for path in files if path.name not in rewritten]
    _refuse_secrets(kept, rewritten, folder)
    return Bundle(folder, kind, kept, rewritten, left, base)


def _kind(folder: Path) -> Kind:
    if (folder / adapter_files.CONFIG).is_file():
        adapter_files.read_config(folder)
        read_header(folder / adapter_files.WEIGHTS)
        return "adapter"
    ggufs = sorted(folder.glob("*.gguf"))
    if (folder / "config.json").is_file() and not ggufs:
        if json_object(folder / "config.json").get("quantization_config"):
            read_headers(folder)
        else:
            check_weight_files(folder, read_config(folder))
        return "model"
    for path in ggufs:
        with open(path, "rb") as file:
            if file.read(4) != b"GGUF":
                raise InputError(f"{path}: is damaged: it does not begin as a GGUF file does; export it again")
    if ggufs:
        return "gguf"
    inner = [name for name in ("model", "merged", "adapter") if (folder / name).is_dir()]
    hint = (
        f"; did you mean {folder / inner[0]}?" if inner else "; name a model's, an adapter's or a folder of GGUF files"
    )
    raise InputError(f"{folder}: holds no config.json, adapter_config.json or *.gguf{hint}")


def _without_places(path: Path, base: str | None) -> str | None:
    """The file's text without names of folders on this machine, or None where it has none."""
    raw: dict[str, Any] = json_object(path)
    changed = {key: value for key, value in raw.items() if key not in _TYPED or hub_name(value) == value}
    if base is not None and path.name == adapter_files.CONFIG:
        changed["base_model_name_or_path"] = base
        if base != raw["base_model_name_or_path"]:
            changed["revision"] = None
    return None if changed == raw else json.dumps(changed, indent=2, sort_keys=True) + "\n"


def _refuse_secrets(files: list[Path], rewritten: dict[str, str], folder: Path) -> None:
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in files if _is_text(path)}
    for path, text in (texts | {folder / name: text for name, text in rewritten.items()}).items():
        if holds_secret(text):
            raise InputError(
                f"{path}: holds what looks like a credential, and everyone could read it; take it out first"
            )


def _is_text(path: Path) -> bool:
    return path.suffix in (".json", ".jinja", ".md", ".txt", "")
