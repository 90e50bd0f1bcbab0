"""A LoRA adapter's files, checked before the base's weights are read.

PEFT takes patterns, module names to import and ways to change the base from ``adapter_config.json``. Here only plain
numbers and names are taken from it, and which layers are adapted is read from the weights' own header.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.config import json_object
from hybrid_ft.hybrid_model.checkpoint.text_model import tensor_shapes
from hybrid_ft.hybrid_model.checkpoint.weight_files import read_header
from hybrid_ft.hybrid_model.families.olmo_hybrid.names import released_shapes

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_LENGTHS = re.compile(r"base_model\.model\.(.+)\.lora_magnitude_vector")  # DoRA's, one for each row of the weight
_NAME = re.compile(r"\^?[\w.]+\$?", re.ASCII)
# What changes the base or adds weights of another kind. The rest of PEFT's keys shape the training alone.
_UNSUPPORTED = (
    "layer_replication",
    "megatron_config",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
)

_MERGED = ("modules_to_save", "trainable_token_indices")
_MERGE = "make a model of it and its base with: hybrid-ft merge {} OUT"


class Adapter(NamedTuple):
    """``base``: a folder, hub name or preset; ``config``: for PEFT, without patterns."""

    base: str
    revision: str | None
    config: LoraConfig


def read_config(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a LoRA adapter that names its base. Raises InputError, also where weights are missing."""
    path = folder / CONFIG
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder}: {WEIGHTS} is missing; weights are read from safetensors alone")
    raw = json_object(path)
    base, revision = raw.get("base_model_name_or_path"), raw.get("revision")
    if raw.get("peft_type") != "LORA" or not isinstance(base, str) or not base:
        raise InputError(f"{path}: must be LoRA and name its base model")
    if revision is not None and not isinstance(revision, str):
        raise InputError(f"{path}: revision must be a string or null")
    return raw


def read_adapter(folder: Path) -> Adapter:
    """An adapter folder's description, for a model to talk to. Raises InputError for one that is not plain LoRA."""
    from peft import LoraConfig

    path, weights = folder / CONFIG, folder / WEIGHTS
    raw = read_config(folder)
    base, revision = raw["base_model_name_or_path"], raw.get("revision")
    for key in _UNSUPPORTED:
        if raw.get(key):
            fix = _MERGE if key in _MERGED else "merge it with what made it"
            raise InputError(f"{path}: {key} cannot be used here; {fix.format(folder)}")
    if raw.get("bias", "none") != "none":
        raise InputError(f"{path}: bias is {raw['bias']!r}; must be 'none'")
    factors = {(match[1], match[2]) for name in read_header(weights) if (match := _FACTOR.fullmatch(name))}
    modules = sorted({module for module, _ in factors})
    if not modules:
        raise InputError(f"{weights}: holds no LoRA weights; it is no adapter, or damaged")
    for module in modules:
        for factor in {"A", "B"} - {known for of, known in factors if of == module}:
            raise InputError(f"{weights}: tensor lora_{factor} of {module} is missing; the file is not whole")
    with_lengths = {match[1] for name in read_header(weights) if (match := _LENGTHS.fullmatch(name))}
    dora = raw.get("use_dora") is True
    if with_lengths != (set(modules) if dora else set()):
        raise InputError(f"{weights}: its lora_magnitude_vector tensors and use_dora in {CONFIG} do not agree")
    config = LoraConfig(
        r=number(path, raw, "r", 8),
        lora_alpha=number(path, raw, "lora_alpha", 8),
        use_rslora=raw.get("use_rslora") is True,
        use_dora=dora,
        rank_pattern=numbers(path, raw, "rank_pattern"),
        alpha_pattern=numbers(path, raw, "alpha_pattern"),
        target_modules=modules,
        task_type="CAUSAL_LM",
    )
    return Adapter(base, revision, config)


def check_adapter(folder: Path, adapter: Adapter, config: PreTrainedConfig) -> None:
    """Refuse an adapter that is not for a model of this config: a layer that it has not, or a factor of another shape."""
    rank = None if adapter.config.rank_pattern else adapter.config.r
    path = folder / WEIGHTS
    shapes = released_shapes(config) if config.model_type == "olmo_hybrid" else tensor_shapes(config)
    for name, entry in read_header(path).items():
        match = _FACTOR.fullmatch(name)
        got = entry["shape"]
        if lengths := _LENGTHS.fullmatch(name):
            if got != [shapes.get(f"{lengths[1]}.weight", [None])[0]]:
                raise InputError(f"{path}: tensor {name} has shape {got}; the adapter is for another model")
            continue
        weight = shapes.get(f"{match[1]}.weight") if match else None
        if match is None and (whole := name.removeprefix("base_model.model.").replace(".base_layer.", ".")) in shapes:
            fix = _MERGE.format(folder)
            raise InputError(f"{path}: holds {whole} whole, {got}, the base's is {list(shapes[whole])}; {fix}")
        if match is None or weight is None or len(weight) != 2:
            raise InputError(
                f"{path}: tensor {name} adapts nothing that the base has; the adapter is for another model"
            )
        own, other = got[:: 1 if match[2] == "A" else -1] if len(got) == 2 else (None, None)
        if other != (weight[1] if match[2] == "A" else weight[0]):
            fix = "the adapter is for another model"
            raise InputError(f"{path}: tensor {name} has shape {got}, the base's weight {list(weight)}; {fix}")
        if rank not in (None, own):
            raise InputError(
                f"{path}: tensor {name} has rank {own}, {CONFIG} says r is {rank}; they do not belong together"
            )


def number(path: Path, raw: dict[str, Any], key: str, default: int) -> Any:
    """A setting that must be a number above 0. Raises InputError."""
    value = raw.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e6:
        raise InputError(f"{path}: {key} is {str(value)[:60]!r}; must be a number above 0")
    return value


def numbers(path: Path, raw: dict[str, Any], key: str) -> dict[str, Any]:
    """Numbers by module; PEFT reads the names as patterns, which can be made to match without end."""
    values = raw.get(key) or {}
    if not isinstance(values, dict) or not all(_NAME.fullmatch(name) for name in values):
        raise InputError(f"{path}: {key} must hold numbers by module names; patterns are not read")
    return {name: number(path, values, name, 0) for name in values}
