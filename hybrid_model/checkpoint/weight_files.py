"""Weight files: the released checkpoint's tensor names, and every reason to refuse a file before it is read.

In memory, transformers joins the three convolutions of a delta layer into ``linear_attn.conv1d``; the released
checkpoints, vLLM and older transformers have ``q_conv1d``, ``k_conv1d`` and ``v_conv1d``. Files of ours have the three.
"""

from __future__ import annotations

import json
import re
import warnings
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers.models.olmo_hybrid import OlmoHybridConfig, OlmoHybridForCausalLM

from hybrid_ft.errors import InputError

_FUSED = re.compile(r"(.*linear_attn\.)conv1d\.weight")
_LEGACY = (("attention_layer_norm", "input_layernorm"), ("feedforward_layer_norm", "post_attention_layernorm"))
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_LARGEST_HEADER = 2**24  # bytes; the 523 tensors of the 7B take 60 kB


def split_widths(config: OlmoHybridConfig) -> dict[str, int]:
    """Channels of each convolution, in the order in which they are joined."""
    key = config.linear_num_key_heads * config.linear_key_head_dim
    return {"q": key, "k": key, "v": config.linear_num_value_heads * config.linear_value_head_dim}


def released_state_dict(state_dict: dict[str, torch.Tensor], config: OlmoHybridConfig) -> dict[str, torch.Tensor]:
    """The same tensors under the released names."""
    widths = split_widths(config)
    released = {}
    for name, tensor in state_dict.items():
        if match := _FUSED.fullmatch(name):
            for part, piece in zip(widths, tensor.split(list(widths.values()))):
                # safetensors refuses tensors that share memory
                released[f"{match[1]}{part}_conv1d.weight"] = piece.clone()
        else:
            released[name] = tensor
    return released


def released_shapes(config: OlmoHybridConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint; 523 for Olmo Hybrid 7B. Raises InputError for an impossible config."""
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            model = OlmoHybridForCausalLM(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"config.json: no model can be made as it says ({' '.join(str(error).split())[:200]})"
        ) from None
    widths = split_widths(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        if match := _FUSED.fullmatch(name):
            for part, width in widths.items():
                shapes[f"{match[1]}{part}_conv1d.weight"] = (width, *tensor.shape[1:])
        elif not (config.tie_word_embeddings and name == "lm_head.weight"):
            shapes[name] = tuple(tensor.shape)
    return shapes


def check_weight_files(folder: Path, config: OlmoHybridConfig) -> None:
    """Refuse a checkpoint whose files are cut short or whose tensors are not those of the config.

    Only headers are read. Raises InputError that names the file and the tensor.
    """
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for path, header in _headers(folder).items():
        for name, entry in header.items():
            if entry["dtype"] not in _BYTES:
                raise InputError(
                    f"{path}: tensor {name} is {entry['dtype']}; weights are read as {', '.join(_BYTES)} only"
                )
            found[_current_name(name)] = (path, tuple(entry["shape"]))
    _split_fused(found, config)
    try:
        expected = released_shapes(config)
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


def _current_name(name: str) -> str:
    for old, new in _LEGACY:
        name = name.replace(old, new)
    return name


def _split_fused(found: dict[str, tuple[Path, tuple[int, ...]]], config: OlmoHybridConfig) -> None:
    """A file may hold the joined convolution, as transformers writes it on request: count it as its three parts."""
    widths = split_widths(config)
    for name in [name for name in found if _FUSED.fullmatch(name)]:
        path, shape = found.pop(name)
        if not shape or shape[0] != sum(widths.values()):
            raise InputError(f"{path}: tensor {name} has shape {list(shape)}, not {sum(widths.values())} channels")
        for part, width in widths.items():
            found[name.replace("conv1d", f"{part}_conv1d")] = (path, (width, *shape[1:]))


def _headers(folder: Path) -> dict[Path, dict[str, Any]]:
    """The header of every weight file, checked against the file's size and the index."""
    index_path = folder / _INDEX
    if not index_path.is_file():
        path = folder / _SINGLE
        if not path.is_file():
            raise InputError(f"{folder}: no {_SINGLE} and no {_INDEX}; weights are read from safetensors files only")
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
            raise InputError(f"{path}: missing, but {_INDEX} names it; the download or copy is not complete")
        headers[path] = read_header(path)
    for name, file in weight_map.items():
        if name not in headers[folder / file]:
            raise InputError(f"{folder / file}: tensor {name} is missing, but {_INDEX} says it is there")
    for path, header in headers.items():
        for name in header:
            if weight_map.get(name) != path.name:
                raise InputError(f"{path}: tensor {name} is not in {_INDEX}")
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
