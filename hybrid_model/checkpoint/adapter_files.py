"""A LoRA adapter's files, checked before the base's weights are read.

PEFT takes patterns, module names to import and ways to change the base from ``adapter_config.json``. Here only plain
numbers and names are taken from it, and which layers are adapted is read from the weights' own header.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.config import json_object
from hybrid_ft.hybrid_model.checkpoint.text_model import tensor_shapes
from hybrid_ft.hybrid_model.checkpoint.weight_files import read_header

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_LENGTHS = re.compile(r"(.+)\.lora_magnitude_vector")  # DoRA's, one for each row of the weight
_ROWS = re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta")
_COPY = re.compile(r"(.+)\.(modules_to_save|original_module)\.weight")
_NAME = re.compile(r"\^?[\w.]+\$?", re.ASCII)
# What changes the base or adds weights of another kind. The rest of PEFT's keys shape the training alone.
_UNSUPPORTED = ("layer_replication", "megatron_config", "use_bdlora")

_INNER = ".base_layer"
EMBEDDING, HEAD = "embed_tokens", "lm_head"
_EMBEDDINGS = (EMBEDDING, HEAD)
_MERGE = "make a model of it and its base with: hybrid-ft merge {} OUT"


class Adapter(NamedTuple):
    """``base``: a folder, hub name or preset; ``config``: for PEFT, without patterns."""

    base: str
    revision: str | None
    config: LoraConfig


def read_config(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a LoRA adapter that names its base. Raises InputError, also
    where weights are missing."""
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


def scores(raw: dict[str, Any]) -> bool:
    """Whether a described adapter makes a reward model of its base."""
    return raw.get("task_type") == "SEQ_CLS"


def read_adapter(folder: Path) -> Adapter:
    """An adapter folder's description, for a model to talk to. Raises InputError for one that is not plain LoRA."""
    from peft import LoraConfig

    path, weights = folder / CONFIG, folder / WEIGHTS
    raw = read_config(folder)
    base, revision = raw["base_model_name_or_path"], raw.get("revision")
    for key in _UNSUPPORTED:
        if raw.get(key):
            raise InputError(f"{path}: {key} cannot be used here; merge it with what made it")
    if raw.get("bias", "none") != "none":
        raise InputError(f"{path}: bias is {raw['bias']!r}; must be 'none'")
    tensors = [name.removeprefix(_PREFIX) for name in read_header(weights)]
    factors = {(match[1], match[2]) for name in tensors if (match := _FACTOR.fullmatch(name))}
    modules = sorted({module for module, _ in factors})
    if not modules:
        raise InputError(f"{weights}: holds no LoRA weights; it is not an adapter, or it is damaged")
    for module in modules:
        for factor in {"A", "B"} - {known for of, known in factors if of == module}:
            raise InputError(f"{weights}: tensor lora_{factor} of {module} is missing; the file is not whole")
    parameters = target_parameters(path, raw)
    wrapped = {module for module in modules if any(_wraps(module, name) for name in parameters)}
    with_lengths = {match[1] for name in tensors if (match := _LENGTHS.fullmatch(name))}
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
        target_modules=[module for module in modules if module not in wrapped],
        target_parameters=parameters or None,
        modules_to_save=_names(path, raw),
        trainable_token_indices=_token_rows(path, raw),
        ensure_weight_tying=raw.get("ensure_weight_tying") is True,
        task_type="SEQ_CLS" if scores(raw) else "CAUSAL_LM",
    )
    return Adapter(base, revision, config)


def check_adapter(folder: Path, adapter: Adapter, config: PreTrainedConfig) -> int:
    """Refuse an adapter that is not for a model of this config: a layer that it has not, or a tensor of another shape.

    Returns the rows of the vocabulary that it needs: the base's, or those of the larger embedding that it brings along.
    """
    path, shapes = folder / WEIGHTS, tensor_shapes(config)
    header = {name.removeprefix(_PREFIX): entry["shape"] for name, entry in read_header(path).items()}
    header = {name: header[name] for name in without_copies(header)}
    whole = {name: _whole_name(name) for name in header if _whole_name(name) in shapes}
    vocabulary = max(config.vocab_size, vocabulary_of(folder))
    _check_named(folder, adapter, shapes, set(whole.values()), bool(config.tie_word_embeddings))
    for name, got in header.items():
        if name in whole:
            _check_whole(folder, adapter, whole[name], got, shapes[whole[name]], vocabulary)
        elif rows := _ROWS.fullmatch(name):
            # PEFT may save those of a tied head again
            of = EMBEDDING if config.tie_word_embeddings and rows[1] == HEAD else rows[1]
            _check_rows(path, adapter, of, got, shapes.get(f"{rows[1]}.weight"), vocabulary)
        elif lengths := _LENGTHS.fullmatch(name):
            if got != [shapes.get(f"{lengths[1]}.weight", [None])[0]]:
                raise InputError(f"{path}: tensor {name} has shape {got}; the adapter is for another model")
        else:
            match = _FACTOR.fullmatch(name)
            of = adapted_weight(match[1], adapter.config.target_parameters or (), shapes) if match else None
            _check_factor(path, adapter, name, got, match, shapes.get(of or ""))
    return vocabulary


def _check_named(
    folder: Path, adapter: Adapter, shapes: dict[str, tuple[int, ...]], held: set[str], tied: bool
) -> None:
    """What ``modules_to_save`` names, by ends as PEFT reads them, is in the file, and no one
    side of tied embeddings."""
    path = folder / CONFIG
    for ending in adapter.config.modules_to_save or ():
        named = [name for name in shapes if name.rpartition(".")[0].endswith(ending)]
        if not named and ending == "classifier" and adapter.config.task_type == "SEQ_CLS":
            continue  # PEFT names it beside score, whichever the model has
        if lost := [name for name in named if name not in held] or ([] if named else [ending]):
            raise InputError(f"{path}: modules_to_save names {ending}, and {WEIGHTS} does not hold {lost[0]}")
        if tied and not adapter.config.ensure_weight_tying and {_module(name) for name in named} & set(_EMBEDDINGS):
            raise InputError(
                f"{path}: modules_to_save names {ending} of a model whose head is its embedding, without ensure_weight_tying; "
                f"{_MERGE.format(folder)}"
            )


def without_copies(names: Collection[str]) -> list[str]:
    """Without what PEFT saves beside an embedding that has grown and is trained whole: the same again,
    and what it was."""
    return [name for name in names if not (match := _COPY.fullmatch(name)) or f"{match[1]}.weight" not in names]


def vocabulary_of(folder: Path) -> int:
    """Rows of the embedding or head that an adapter brings along whole; 0 for none."""
    header = read_header(folder / WEIGHTS)
    return max((header[name]["shape"][0] for name in header if _module(_whole_name(name)) in _EMBEDDINGS), default=0)


def _check_factor(
    path: Path, adapter: Adapter, name: str, got: list[int], match: re.Match[str] | None, weight: Any
) -> None:
    if match is None or weight is None or len(weight) not in (2, 3):
        raise InputError(f"{path}: tensor {name} adapts nothing that the base has; the adapter is for another model")
    *experts, out, inner = weight
    own, other = got[:: 1 if match[2] == "A" else -1] if len(got) == 2 else (0, None)
    if other != (inner if match[2] == "A" else out) or own % prod(experts):
        fix = "the adapter is for another model"
        raise InputError(f"{path}: tensor {name} has shape {got}, the base's weight {list(weight)}; {fix}")
    rank, found = None if adapter.config.rank_pattern else adapter.config.r, own // prod(experts)
    if rank not in (None, found):
        raise InputError(
            f"{path}: tensor {name} has rank {found}, {CONFIG} says r is {rank}; they do not belong together"
        )


def _check_whole(
    folder: Path, adapter: Adapter, name: str, got: list[int], shape: tuple[int, ...], vocabulary: int
) -> None:
    """A module trained whole, or an embedding that has grown, which PEFT saves."""
    module, embedding = name.rpartition(".")[0], _module(name) in _EMBEDDINGS
    wanted = [vocabulary, *shape[1:]] if embedding else list(shape)
    if got != wanted:
        raise InputError(
            f"{folder / WEIGHTS}: holds {name} as {got}, it must be {wanted}; the adapter is for another model"
        )
    endings = list(adapter.config.modules_to_save or ())
    if adapter.config.ensure_weight_tying and any(ending.endswith(_EMBEDDINGS) for ending in endings):
        endings += _EMBEDDINGS  # PEFT names one of the two and saves both
    named = any(module.endswith(ending) for ending in endings)
    if not named and not (embedding and vocabulary > shape[0]):
        fix = _MERGE.format(folder)
        raise InputError(f"{folder / WEIGHTS}: holds {name} whole, and modules_to_save does not name it; {fix}")


def _check_rows(path: Path, adapter: Adapter, module: str, got: list[int], weight: Any, vocabulary: int) -> None:
    """Single rows of an embedding or head."""
    given = adapter.config.trainable_token_indices
    ids = given if isinstance(given, list) else None
    if isinstance(given, dict):
        ids = next((ids for ending, ids in given.items() if f".{module}".endswith(f".{ending}")), None)
    if weight is None or ids is None or got != [len(ids), *weight[1:]] or any(token >= vocabulary for token in ids):
        raise InputError(
            f"{path}: trained rows of {module} have shape {got}, and trainable_token_indices in {CONFIG} do not name as many "
            f"ids below {vocabulary}"
        )


def target_parameters(path: Path, raw: dict[str, Any]) -> list[str]:
    """Parameters that are adapted beside modules, as those of experts. Raises InputError."""
    names = raw.get("target_parameters") or []
    if not isinstance(names, list) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise InputError(f"{path}: target_parameters must be a list of parameter names")
    return names


def adapted_weight(module: str, parameters: Sequence[str], names: Iterable[str]) -> str | None:
    """The weight, of those in ``names``, that factors of ``module`` adapt.

    ``parameters``: what is adapted of modules that hold no layers. PEFT wraps such a module once for each, in the order
    of the module's own, so that the factors of the first lie innermost.
    """
    if not any(_wraps(module, name) for name in parameters):
        return f"{module}.weight"
    plain = _unwrapped(module)
    depth = (len(module) - len(plain)) // len(_INNER)
    own = [
        name
        for name in names
        if name.rpartition(".")[0] == plain and any(f".{name}".endswith(f".{ending}") for ending in parameters)
    ]
    return own[-1 - depth] if depth < len(own) else None


def _wraps(module: str, parameter: str) -> bool:
    return f".{_unwrapped(module)}".endswith(f".{parameter.rpartition('.')[0]}")


def _unwrapped(module: str) -> str:
    while module.endswith(_INNER):
        module = module.removesuffix(_INNER)
    return module


def _whole_name(name: str) -> str:
    return name.replace(".token_adapter.", ".").replace(".base_layer.", ".")


def _module(name: str) -> str:
    """``embed_tokens`` of ``model.embed_tokens.weight``; nothing of what is not a weight."""
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 and parts[-1] == "weight" else ""


def _names(path: Path, raw: dict[str, Any]) -> list[str] | None:
    names = raw.get("modules_to_save")
    if not names:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise InputError(f"{path}: modules_to_save must be a list of module names")
    return names


def _token_rows(path: Path, raw: dict[str, Any]) -> Any:
    """Ids, or ids by the names of modules."""
    given = raw.get("trainable_token_indices")
    if not given:
        return None
    lists = given if isinstance(given, dict) else {"embed_tokens": given}
    right = all(_NAME.fullmatch(name) for name in lists) and all(
        isinstance(ids, list) and ids and all(type(token) is int and 0 <= token < 2**31 for token in ids)
        for ids in lists.values()
    )
    if not right:
        raise InputError(f"{path}: trainable_token_indices must be a list of ids, or such lists by module names")
    return given


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
