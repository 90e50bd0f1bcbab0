"""Weight files, checked by their headers before they are read.

Only headers are looked at.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.families.known import family_of

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_LARGEST_HEADER = 2**24  # bytes; the 523 tensors of the 7B take 60 kB


def check_weight_files(folder: Path, config: PreTrainedConfig) -> None:
    """Refuse a checkpoint whose files are cut short or whose tensors are not those of the config.

    Only headers are read. Raises InputError that names the file and the tensor.
    """
    released = family_of(config).released
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for path, header in read_headers(folder).items():
        for name, entry in header.items():
            if entry["dtype"] not in _BYTES:
                raise InputError(
                    f"{path}: tensor {name} is {entry['dtype']}; weights are read as {', '.join(_BYTES)} only"
                )
            found[name if released is None else released.current(name)] = (path, tuple(entry["shape"]))
    if released is None:
        return  # transformers' own conversions decide, when it loads them
    released.counted(found, config)
    try:
        expected = released.shapes(config)
    except InputError as error:
        raise InputError(f"{folder}/{error}") from None
    missing = [name for name in expected if name not in found]
    if missing:
        raise InputError(
            f"{folder}: tensor {missing[0]} is missing ({len(missing)} of {len(expected)} are); "
            "the weights are not those of its config.json"
        )
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    unexpected = [name for name in found if name not in expected and name not in tied]
    if unexpected:
        raise InputError(
            f"{found[unexpected[0]][0]}: tensor {unexpected[0]} is not part of the model ({len(unexpected)} are not); "
            "the weights are not those of its config.json"
        )
    for name, shape in expected.items():
        path, got = found[name]
        if got != shape:
            raise InputError(f"{path}: tensor {name} has shape {list(got)}, its config.json asks for {list(shape)}")


def read_headers(folder: Path) -> dict[Path, dict[str, Any]]:
    """The header of every weight file, checked against the file's size and the index."""
    index_path = folder / INDEX
    if not index_path.is_file():
        path = folder / SINGLE
        if not path.is_file():
            raise InputError(f"{folder}: no {SINGLE} and no {INDEX}; weights are read from safetensors files only")
        return {path: read_header(path)}
    try:
        weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index_path}: not an index of weight files ({error})") from None
    headers = {}
    for file in files:
        path = folder / str(file)
        if Path(str(file)).name != file or not path.is_file():
            raise InputError(f"{path}: missing, but {INDEX} names it; the download or copy is not complete")
        headers[path] = read_header(path)
    for name, file in weight_map.items():
        if name not in headers[folder / file]:
            raise InputError(f"{folder / file}: tensor {name} is missing, but {INDEX} says it is there")
    for path, header in headers.items():
        for name in header:
            if weight_map.get(name) != path.name:
                raise InputError(f"{path}: tensor {name} is not in {INDEX}")
    return headers


def read_header(path: Path) -> dict[str, Any]:
    """The header of one safetensors file: ``dtype``, ``shape`` and ``data_offsets`` by tensor. Raises InputError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size:
            raise InputError(f"{path}: {size} bytes end before the file's header does; it is cut short, copy it again")
        if length > _LARGEST_HEADER:
            raise InputError(f"{path}: its header of {length} bytes is larger than any model's; it is damaged")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            wrong = [name for name, entry in header.items() if not _consistent(entry)]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise InputError(f"{path}: not a safetensors file: its header cannot be read") from None
    if end != size:
        raise InputError(f"{path}: {size} bytes, but its header promises {end}; it is damaged, copy it again")
    if wrong:
        raise InputError(f"{path}: tensor {wrong[0]} does not fill its place in the file; it is damaged, copy it again")
    return header


def _consistent(entry: dict[str, Any]) -> bool:
    begin, end = entry["data_offsets"]
    return entry["dtype"] not in _BYTES or end - begin == prod(entry["shape"]) * _BYTES[entry["dtype"]]
