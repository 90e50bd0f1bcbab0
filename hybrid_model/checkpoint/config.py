"""A checkpoint's folder and JSON files, checked before weights are read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from hybrid_ft.errors import ENVIRONMENT, InputError, one_line
from hybrid_ft.hybrid_model.checkpoint.text_model import text_config
from hybrid_ft.hybrid_model.checkpoint.weight_files import check_weight_files
from hybrid_ft.hybrid_model.families.known import family_of_type, is_known
from hybrid_ft.hybrid_model.families.presets import PRESETS, TINY, preset_config

BUNDLED = Path(__file__).parents[1] / "tiny"
DAMAGED = "it is damaged, copy it again"
# Names of code that transformers would fetch and run for such a model, here or where an export is opened.
FOREIGN = ("auto_map", "_attn_implementation", "attn_implementation", "trust_remote_code", "use_kernels", "custom_")

_DOWNLOAD = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_PATIENCE = 5.0  # seconds within which the hub must answer; what is in the cache is then opened from there
_MOST_LAYERS = 1000  # transformers lists the kinds of all layers; a million take it a quarter of a minute


def read_config(folder: Path) -> PreTrainedConfig:
    """The config of a checkpoint folder's text model.

    Raises InputError for a file that is missing or of an architecture that is not known.
    """
    path = folder / "config.json"
    if not path.exists():
        adapter = (folder / "adapter_config.json").is_file()
        merge = (
            f"it holds an adapter; a recipe goes on with it by model.adapter: {folder}, and a model of it and its base "
            f"is made by: hybrid-ft merge {folder} OUT"
        )
        hint = merge if adapter else "a checkpoint has one beside its weights"
        raise InputError(f"{path}: missing; {hint}")
    raw = json_object(path)
    kind = raw.get("model_type")
    if raw.get("auto_map") and not is_known(kind):
        raise InputError(
            f"{path}: model_type {str(kind)[:60]!r} names code of its own (auto_map); such code is never run"
        )
    family_of_type(kind, str(path))
    if isinstance(layers := raw.get("num_hidden_layers"), int) and layers > _MOST_LAYERS:
        raise InputError(f"{path}: num_hidden_layers is {str(layers)[:60]}; must be at most {_MOST_LAYERS}")
    if raw.get("quantization_config"):
        raise InputError(
            f"{path}: quantization_config: quantised weights cannot be trained; name the checkpoint before it "
            "(plain transformers answers with them)"
        )
    for key in [key for key in raw if key.startswith(FOREIGN)]:
        del raw[key]
    return text_config(raw, path)


def find_config(path: str | Path, revision: str | None = None, *, weights: bool = False) -> PreTrainedConfig:
    """The config of what ``load`` opens, without its weights. Raises InputError.

    ``weights``: also look at the headers of the weight files, where they lie on this machine.
    """
    name = str(path)
    if name in PRESETS:
        return preset_config(name)
    folder = find_folder(name, revision, weights=False)
    config = read_config(folder)
    if weights and os.path.isdir(os.path.expanduser(name)):
        check_weight_files(folder, config)
        check_generation_config(folder, config)
    return config


def check_generation_config(folder: Path, config: PreTrainedConfig) -> None:
    """Refuse a generation config that is damaged, or whose end tokens are not tokens of the model."""
    path = folder / "generation_config.json"
    if not path.exists():
        return
    raw = json_object(path)
    ends = raw.get("eos_token_id")
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and (type(end) is not int or not 0 <= end < config.vocab_size):
            rule = f"must be ids below {config.vocab_size}, the model's vocabulary"
            raise InputError(f"{path}: eos_token_id is {str(ends)[:60]!r}; {rule}")
    try:
        GenerationConfig.from_dict(raw)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: {one_line(error)}") from None


def lasting_name(name: str) -> str:
    """What an adapter calls its base, so that it opens from anywhere: an absolute path for a folder,
    or the hub's name."""
    if name == TINY:
        return str(BUNDLED)
    path = os.path.expanduser(name)
    return os.path.abspath(path) if os.path.isdir(path) else name


def find_folder(name: str, revision: str | None = None, *, weights: bool = False) -> Path:
    """Where a checkpoint lies on this machine, downloaded if it is a hub name. Raises InputError."""
    if name == TINY:
        return BUNDLED
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{name}: is a file; name the folder that it lies in")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"{name}: no such folder; name a preset ({', '.join(PRESETS)}), a folder or owner/name")
    return _download(name, revision, weights)


def _download(name: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = _DOWNLOAD if weights else [pattern for pattern in _DOWNLOAD if "safetensors" not in pattern]
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=patterns, etag_timeout=_PATIENCE)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at {revision}" if revision else ""
        fix = "check the name, the network and, for a gated model, your login"
        raise InputError(
            f"{name}{at}: no such folder here, and not to be had from the hub ({one_line(error, 150)}); {fix}",
            ENVIRONMENT,
        ) from None
    return Path(found)


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError for a file that is damaged."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; it must be a file")
    try:
        raw = path.read_bytes()
        value = json.loads(raw.decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        reason = f"not JSON ({one_line(error)})" if raw.strip() else "the file is empty"
        raise InputError(f"{path}: {reason}; {DAMAGED}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; {DAMAGED}")
    return value
