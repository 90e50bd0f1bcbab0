"""Opening the text model of any family, with transformers' own loading.

A multimodal checkpoint holds more than its text model. The rest stays in its folder, and an export
copies it from there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hybrid_ft.errors import InputError, one_line
from hybrid_ft.hybrid_model.families.family import Family, is_of_sizes, is_scorer
from hybrid_ft.hybrid_model.families.known import family_of, family_of_type
from hybrid_ft.hybrid_model.lay_flat import lay_flat
from hybrid_ft.hybrid_model.scorer import HEAD, as_scorer, flat_scorer, is_of_head, scorer_class

_FAULTS = (StrictDataclassError, ArithmeticError, AttributeError, KeyError, TypeError, ValueError)


def text_config(raw: dict[str, Any], path: Path) -> PreTrainedConfig:
    """The config of the text model that a checkpoint's ``config.json``, ``raw``, describes;
    ``path`` goes into messages.

    A multimodal config's own end tokens and tied embeddings hold for its text model too. Raises InputError for a config
    that describes no model of its family.
    """
    family = family_of_type(raw.get("model_type"), str(path))
    text = raw
    if raw["model_type"] in family.frames:
        inner = raw.get("text_config")
        if not isinstance(inner, dict):
            raise InputError(f"{path}: text_config is {str(inner)[:60]!r}; must be an object")
        text = inner | {"model_type": family.frames[raw["model_type"]]}
        if "tie_word_embeddings" in raw:
            text["tie_word_embeddings"] = raw["tie_word_embeddings"]
        ends = dict.fromkeys([*_ids(raw.get("eos_token_id")), *_ids(text.get("eos_token_id"))])
        if ends:
            text["eos_token_id"] = next(iter(ends)) if len(ends) == 1 else list(ends)
    if text.get("quantization_config"):
        raise InputError(
            f"{path}: quantization_config: quantised weights cannot be trained; name the checkpoint before it "
            "(plain transformers answers with them)"
        )
    try:
        text = family.repair(PreTrainedConfig._decode_special_floats(text))
        return CONFIG_MAPPING[text["model_type"]].from_dict(text)
    except (InputError, *_FAULTS) as error:
        raise InputError(f"{path}: {one_line(error)}") from None


def text_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """transformers' class of the text model, which keeps in float32 what the family says."""
    family = family_of(config)
    if is_scorer(config):
        return _keeping(cast(Hashable, scorer_class(config)), family)
    return _keeping(cast(Hashable, family.language_model(config.model_type)), family)


def tensor_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in memory. Raises InputError for a config of which no model can be made."""
    try:
        with torch.device("meta"):
            model = text_class(config)(config)
    except (*_FAULTS, RuntimeError) as error:
        if not is_of_sizes(error):
            raise
        raise InputError(f"config.json: no model can be made as it says ({one_line(error)[:200]})") from None
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def load_text_model(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, **places: Any) -> PreTrainedModel:
    """The text model in ``folder``, laid flat, in eval mode; ``places``: transformers' device_map and offload_folder.

    Raises InputError for a tensor that is missing, of another shape, or known neither to the model nor to its family.
    """
    model = _own_tensors(folder, config, dtype, places)
    model.checkpoint_folder = folder
    return lay_flat(model.eval())


def model_without_values(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """transformers' text model in ``folder`` on the meta device, with the names that it was read under. Only headers
    are read.

    Raises InputError as ``load_text_model`` does.
    """
    return _own_tensors(folder, config, torch.float32, {"device_map": "meta"})


def reopened(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """What was written to ``folder``, in plain transformers and float32. Raises RuntimeError for a tensor that is
    missing, unexpected or of another shape."""
    cls: Any = text_class(config)
    plain, info = cls.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        attn_implementation="sdpa",
        output_loading_info=True,
    )
    family = family_of(config)
    odd = {kind: [name for name in names if not is_carried(family, str(name))] for kind, names in info.items()}
    if any(odd.values()):
        raise RuntimeError(f"{folder}: transformers reports {odd}")
    model: PreTrainedModel = plain.eval()
    return model


def _own_tensors(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, places: dict[str, Any]) -> PreTrainedModel:
    model, info = _opened(text_class(config), folder, config, dtype, places)
    unexpected = [name for name in info["unexpected_keys"] if not is_carried(family_of(config), name)]
    _refuse_others(folder, info["missing_keys"], unexpected, info)
    return model


def _opened(
    cls: Any, folder: Path, config: PreTrainedConfig, dtype: torch.dtype, places: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """transformers' model and what it says of the names and shapes it met, which are for the caller to judge."""
    try:
        model, info = cls.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            **places,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (*_FAULTS, RuntimeError, OSError) as error:
        if "conversion of the weights" in str(error):
            raise InputError(
                f"{folder}: tensors that transformers joins, as those of experts, do not fit: one is missing or has another "
                "shape; the weights are not those of its config.json"
            ) from None
        if not is_of_sizes(error):
            raise
        raise InputError(f"{folder}: transformers cannot open it: {one_line(error)[:300]}") from None
    return model, info


def load_scorer(
    folder: Path, config: PreTrainedConfig, dtype: torch.dtype, seed: int = 0, *, flat: bool = True, **places: Any
) -> PreTrainedModel:
    """A reward model in ``folder``, or one with a new head over the text model there, in eval mode.

    seed  of the new head, whose weights are drawn as transformers draws them
    flat  laid flat; else as plain transformers has it

    Raises InputError as ``load_text_model`` does, for an architecture without reward models, and for a classifier of
    several labels.
    """
    new, config = not is_scorer(config), as_scorer(config)
    family = family_of(config)
    plain: Any = scorer_class(config)
    cls: Any = _keeping(plain, family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, info = _opened(cls, folder, config, dtype, places)
    known = {HEAD} if new else set()
    unexpected = [
        name for name in info["unexpected_keys"] if not (is_carried(family, name) or (new and is_of_head(name)))
    ]
    _refuse_others(folder, [name for name in info["missing_keys"] if name not in known], unexpected, info)
    return flat_scorer(model.eval()) if flat else model.eval()


def random_text_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model of random weights, laid flat, in eval mode."""
    model = text_class(config)._from_config(config, dtype=dtype, attn_implementation="sdpa")
    _keep_float32(model)
    return lay_flat(model.eval())


def empty_text_model(config: PreTrainedConfig, dtype: torch.dtype, scores: bool = False) -> PreTrainedModel:
    """What loading makes of a checkpoint, in shapes, dtypes and ties, without values: memory that nobody has written to
    is not taken. ``scores``: a reward model."""
    config = as_scorer(config) if scores or is_scorer(config) else config
    with torch.device("meta"):
        model = text_class(config)._from_config(config, dtype=dtype, attn_implementation="sdpa")
    _keep_float32(model)
    model.to_empty(device="cpu").tie_weights()
    return flat_scorer(model.eval()) if is_scorer(config) else lay_flat(model.eval())


def _keep_float32(model: PreTrainedModel) -> None:
    """What loading leaves in float32, of a model that was not loaded."""
    kept = re.compile("|".join(rf"(?:^|\.){name}(?:$|\.)" for name in model._keep_in_fp32_modules_strict or ("(?!)",)))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if kept.search(name):
            tensor.data = tensor.data.float()


def _refuse_others(folder: Path, missing: Collection[str], unexpected: Collection[str], info: dict[str, Any]) -> None:
    """Refuse files whose tensors are not those of the model."""
    for found, fault in ((missing, "is missing"), (unexpected, "is not part of the model")):
        if found:
            raise InputError(
                f"{folder}: tensor {min(found)} {fault} ({len(found)} such); "
                "the weights are not those of its config.json"
            )
    for name, got, wanted in info["mismatched_keys"]:
        raise InputError(f"{folder}: tensor {name} has shape {list(got)}, its config.json asks for {list(wanted)}")


def is_carried(family: Family, name: str) -> bool:
    """Whether a checkpoint's tensor belongs to what is beside the text model."""
    return any(re.fullmatch(pattern, name) for pattern in family.carried)


@cache
def _keeping(cls: Any, family: Family) -> type[PreTrainedModel]:
    names = {ending.lstrip(".") for ending in family.float32} | set(cls._keep_in_fp32_modules_strict or ())
    fields = {"_keep_in_fp32_modules_strict": names, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), fields)


def _ids(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
