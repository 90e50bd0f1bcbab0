"""Loading a checkpoint: safetensors files alone, and no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.config import check_generation_config, find_folder, lasting_name, read_config
from hybrid_ft.hybrid_model.checkpoint.quantised_weights import known_quantisation, scales_or_values, without_packing
from hybrid_ft.hybrid_model.checkpoint.text_model import (
    empty_text_model,
    load_scorer,
    load_text_model,
    random_text_model,
    text_class,
)
from hybrid_ft.hybrid_model.checkpoint.weight_files import check_weight_files
from hybrid_ft.hybrid_model.families.family import is_scorer
from hybrid_ft.hybrid_model.families.presets import PRESETS, TINY, preset_config

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    from_scratch: bool = False,
    vocab_size: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    device_map: Any = None,
    offload_folder: str | Path | None = None,
    quantization_config: Any = None,
    attn_implementation: str | None = None,
    scores: bool = False,
    weights: bool = True,
) -> PreTrainedModel:
    """A hybrid from a folder, a name on the Hugging Face hub, or a preset (tiny, 190M, 1B, 7B, samba-421M, samba-1.3B),
    in eval mode.

    dtype defaults to the checkpoint's own. ``A_log`` and ``dt_bias`` are float32 in any case. A config whose
    ``rope_parameters`` are null, hold a null ``rope_theta`` or are absent gives a model without rope.
    from_scratch gives random weights, the same for the same seed, and leaves the global generator as it was;
    vocab_size then replaces the config's. Of the presets only tiny comes with weights.

    scores: a reward model, which gives each row one score in place of logits; over a language model's weights its head
    is new, drawn by seed. A checkpoint that is a reward model is opened as one in any case.

    weights: False gives the same model without values, for one that gets them from another process.

    device_map, offload_folder and quantization_config are transformers', for weights of a checkpoint: the layers are
    quantised that ``from_pretrained`` quantises, by bitsandbytes or torchao. attn_implementation is refused.

    Raises InputError for a folder that is not a whole checkpoint of this architecture.
    """
    name = str(path)
    _refuse_attention(attn_implementation)
    if device_map is not None and (from_scratch or device is not None):
        raise InputError("load: device_map places the weights of a checkpoint; leave device and from_scratch out")
    if quantization_config is not None:
        if from_scratch or scores or not weights:
            raise InputError(
                "load: quantization_config is for weights of a language model; leave from_scratch and scores out"
            )
        quantization_config = known_quantisation(quantization_config)
        if device is not None:  # a quantised model cannot be moved as others are
            device, device_map = None, {"": device}
    if scores and from_scratch:
        raise InputError("load: scores needs trained weights; leave from_scratch out")
    if vocab_size is not None and not from_scratch:
        raise InputError(f"model {name}: vocab_size can be chosen with from_scratch only; the weights have their own")
    if from_scratch and name in PRESETS:
        config = preset_config(name)
    else:
        if name in PRESETS and name != TINY:
            raise InputError(f"model {name} is a shape without weights; set from_scratch: true or name a checkpoint")
        folder = find_folder(name, revision, weights=not from_scratch)
        config = read_config(folder)
    wanted = dtype_of(dtype or config.dtype or torch.float32)
    if from_scratch:
        if vocab_size is not None:
            config.vocab_size = vocab_size
            _drop_tokens_outside(config)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = random_text_model(config, wanted) if weights else empty_text_model(config, wanted)
    else:
        check_weight_files(folder, config)
        check_generation_config(folder, config)
        if not weights:
            model = empty_text_model(config, wanted, scores)
            if not is_scorer(model.config):
                model.checkpoint_folder = folder
        elif scores or is_scorer(config):
            model = load_scorer(folder, config, wanted, seed, device_map=device_map, offload_folder=offload_folder)
        else:
            model = load_text_model(
                *(folder, config, wanted),
                device_map=device_map,
                offload_folder=offload_folder,
                quantization_config=quantization_config,
            )
        if weights:
            check_finite(folder, model)
        if quantization_config is not None:
            without_packing(model)
        # what PEFT calls an adapter's base: not a folder of the hub's cache
        model.name_or_path = model.config._name_or_path = lasting_name(name)
    return model if device is None else model.to(device)


def _refuse_attention(attn_implementation: str | None) -> None:
    """A keyword of transformers' that would be obeyed by half."""
    if attn_implementation is not None:
        raise InputError(
            f"load: attn_implementation is {attn_implementation!r}; attention goes by documents here, through flash-attn where "
            "it is installed and torch's own kernels elsewhere; leave it out"
        )


def open_plain(name: str, revision: str | None, dtype: torch.dtype, scores: bool = False) -> PreTrainedModel:
    """What ``load`` opens, as plain transformers has it. Raises InputError as ``load`` does."""
    folder = find_folder(name, revision, weights=True)
    config = read_config(folder)
    if scores:
        return load_scorer(folder, config, dtype, flat=False)
    cls: Any = text_class(config)
    # a base's config may name an attention of the hub
    return cls.from_pretrained(folder, config=config, dtype=dtype, use_safetensors=True, attn_implementation="sdpa")


def check_finite(folder: Path, model: torch.nn.Module) -> None:
    """Refuse weights that are not finite: one such number makes every loss none, and then the rows would be blamed."""
    for name, parameter in model.named_parameters():
        # an offloaded weight is read when it is used
        values = () if parameter.is_meta else scales_or_values(parameter)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in values):
            raise InputError(f"{folder}: tensor {name} holds values that are not finite; take another checkpoint")


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype by its name. Raises InputError."""
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise InputError(f"dtype: got {dtype!r}; must be one of {', '.join(_DTYPES)}")
        dtype = _DTYPES[dtype]
    return dtype


def _drop_tokens_outside(config: PreTrainedConfig) -> None:
    """A smaller vocabulary may not have the preset's special tokens; the caller sets its tokenizer's."""
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name)
        if isinstance(value, int) and value >= config.vocab_size:
            setattr(config, name, None)
