"""Folders as splits of files: saved datasets, downloaded repositories, shards."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid_ft.errors import InputError, one_line, shown
from hybrid_ft.finetune.data.sources.file import is_data_file

Splits = dict[str, list[str]]


@dataclass
class Folder:
    """The files of each split, in the order of their rows. ``notes``: what was left out."""

    splits: Splits
    notes: list[str] = field(default_factory=list)


def read_folder(path: str, name: str | None) -> Folder:
    """The splits of a folder; ``name``: its configuration, where it has several. Raises InputError."""
    if os.path.isfile(os.path.join(path, "dataset_dict.json")):
        names = _described(path, "dataset_dict.json", "splits")
        if not names or not all(isinstance(split, str) for split in names):
            raise InputError(f"{path}/dataset_dict.json: splits: got {shown(names)}; must be a list of names")
        return Folder({split: _saved(os.path.join(path, split), name) for split in names})
    if os.path.isfile(os.path.join(path, "state.json")):
        files = _saved(path, name)
        return Folder({"train": files})
    return _repository(path, name)


def describes_folder(path: str) -> bool:
    """Whether a file is one of the descriptions that ``save_to_disk`` writes beside the data."""
    folder, name = os.path.split(path)
    if name not in ("dataset_info.json", "dataset_dict.json", "state.json"):
        return False
    return any(os.path.isfile(os.path.join(folder, mark)) for mark in ("state.json", "dataset_dict.json"))


def _saved(path: str, name: str | None) -> list[str]:
    """The files of one data set that ``save_to_disk`` wrote."""
    if name is not None:
        raise InputError(f"{path}: name: got {shown(name)}; a saved data set has no configurations; leave it out")
    items = _described(path, "state.json", "_data_files")
    names = [item.get("filename") if isinstance(item, dict) else None for item in items]
    files = [os.path.join(path, str(file)) for file in names]
    missing = next(
        (file for file, name in zip(files, names, strict=True) if not name or not os.path.isfile(file)), None
    )
    if missing is not None or not files:
        fix = "save it again with save_to_disk, or copy the folder whole"
        raise InputError(f"{path}: {shown(missing or 'no file')}, which state.json names, is not there; {fix}")
    return files


def _described(path: str, file: str, key: str) -> list[Any]:
    """A list in one of the descriptions that ``save_to_disk`` writes."""
    try:
        value = json.loads(Path(path, file).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{os.path.join(path, file)}: cannot be read ({one_line(error, 120)})") from None
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise InputError(f"{os.path.join(path, file)}: {key}: got {shown(found)}; must be a list")
    return found


def _repository(path: str, name: str | None) -> Folder:
    """Splits as the ``datasets`` library finds them: by the README's configurations, else by the names of the files."""
    import datasets
    from datasets.load import LocalDatasetModuleFactory

    here = [os.path.join(root, file) for root, _, files in os.walk(path) for file in files if is_data_file(file)]
    if not here:
        saved = [inner for inner in sorted(os.listdir(path)) if os.path.isdir(os.path.join(path, inner))]
        more = f"; it holds the folders {', '.join(saved[:5])}" if saved else ""
        raise InputError(f"{path}: is a folder without a data file that can be read{more}")
    try:
        found = LocalDatasetModuleFactory(path).get_module().builder_configs_parameters
        configs = {config.name: config for config in found.builder_configs or ()}
        config = configs[_chosen(path, name, list(configs), found.default_config_name)]
        config._resolve_data_files(base_path=os.path.abspath(path), download_config=datasets.DownloadConfig())
        data_files = config.data_files
    except InputError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{path}: its files cannot be told apart ({one_line(error, 200)}); name the files") from None
    splits: Splits = {}
    if not data_files:
        raise InputError(f"{path}: no data file is in a split; name the files")
    for split, files in data_files.items():
        splits[str(split)] = [os.path.relpath(file) if not os.path.isabs(path) else str(file) for file in files]
        for file in splits[str(split)]:
            if not os.path.isfile(file):
                raise InputError(
                    f"{path}: split {split} names {shown(file)}, which is not a file here; name local files"
                )
    read = {os.path.realpath(file) for files in splits.values() for file in files}
    left = sorted(os.path.relpath(file, path) for file in here if os.path.realpath(file) not in read)
    left = [file for file in left if not file.startswith(".") and os.path.basename(file) not in _DESCRIPTIONS]
    notes = [f"not read: {', '.join(left[:5])}{', ...' if len(left) > 5 else ''}"] if left else []
    return Folder(splits, notes)


_DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "config.json")


def _chosen(path: str, name: str | None, names: list[str], default: str | None) -> str:
    """The configuration to read. Raises InputError where that is not said, or there is no such."""
    if name is None and len(names) == 1:
        return names[0]
    wanted = name if name is not None else default if default in names else None
    if wanted in names:
        return str(wanted)
    if names == ["default"] and name is not None:
        raise InputError(f"{path}: name: got {shown(name)}; its README names no configurations; leave name out")
    have = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    if name is None:
        raise InputError(f"{path}: has the configurations {have}; choose one: name: {names[0]}")
    raise InputError(f"{path}: name: got {shown(name)}; must be one of {have}")
