"""Export to 8 or 4 bits a weight, which plain transformers opens."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.conversion.place import Place
from hybrid_ft.finetune.conversion.source import Result, Source, relative_logits, write_config
from hybrid_ft.finetune.runs import storage
from hybrid_ft.finetune.runs.identity import digest_of, stamps
from hybrid_ft.hybrid_model.checkpoint.config import json_object
from hybrid_ft.hybrid_model.checkpoint.text_model import text_class
from hybrid_ft.hybrid_model.checkpoint.usual_mode import give_usual_mode
from hybrid_ft.hybrid_model.checkpoint.weight_files import check_weight_files, read_headers
from hybrid_ft.hybrid_model.families.known import family_of, family_of_type
from hybrid_ft.hybrid_model.quantised import large_layers

PACKAGES = {"int8": "torchao", "int4": "bitsandbytes"}
"""Of each the one that gives on reopening, on a CPU too, exactly the logits that it gave before saving. torchao's 4
bits do not open on a CPU."""
_BLOCK = {"int8": 1, "int4": 64}
"""Values of a row that share a scale; rows of bitsandbytes on a CPU are whole blocks."""


def export_quantised(source: Source, place: Place, to: str, dtype: torch.dtype | None) -> Result:
    """Quantise while loading, save, reopen in plain transformers and compare. ``dtype``: of what is not quantised,
    bfloat16 if None. Raises InputError where the package is missing or nothing can be quantised."""
    package, dtype = PACKAGES[to], dtype or torch.bfloat16
    if importlib.util.find_spec(package) is None:
        raise InputError(f"--to {to}: needs {package}; pip install 'hybrid-ft[quantised]'", ENVIRONMENT)
    check_weight_files(source.folder, source.config)
    kept, quantised = _choose(source, to)
    if not quantised:
        raise InputError(f"--to {to}: {source.folder} has no linear layer that could be quantised")
    needed = sum(path.stat().st_size for path in read_headers(source.folder))
    place.check_room(needed)
    with _quiet(), place.held(_identity(source, to, dtype)) as part, storage.saving(place.out, needed):
        # what it keeps in float32 decides what it gives after reopening, and so no class of ours does
        cls: Any = family_of(source.config).language_model(source.config.model_type)
        model = cls.from_pretrained(
            source.folder,
            config=source.config,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="sdpa",
            quantization_config=_settings(to, dtype, kept),
            device_map="cpu",
        ).eval()
        model.save_pretrained(part)
        _mend_config(part / "config.json")
        give_usual_mode(part.glob("*.safetensors"))
        source.copy_small_files(part)
        opened = open_quantised(part)
        if (difference := relative_logits(model, opened)) > 0:
            raise RuntimeError(f"{part}: logits differ by {difference:.1e} from those before saving; they must not")
        change = relative_logits(source.opened(torch.float32), opened)
        size = sum(path.stat().st_size for path in part.glob("*.safetensors"))
        place.publish(part)
    said = (
        f"reopened in plain transformers with the logits from before saving; {change:.1%} off the source's in float32"
    )
    return Result(size, f"{quantised:,} layers in {to} by {package}, {said}", open_quantised)


def open_quantised(folder: Path) -> Any:
    """In plain transformers, on a CPU. Raises RuntimeError for a tensor that is missing or unexpected."""
    with _quiet():
        model, info = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", output_loading_info=True)
    if problems := {kind: sorted(map(str, names)) for kind, names in info.items() if names}:
        raise RuntimeError(f"{folder}: transformers reports {problems}")
    return model.eval()


def _mend_config(path: Path) -> None:
    """Where some readers would take it for another model's, as no rope for a theta of 10,000."""
    raw = json_object(path)
    mended = family_of_type(raw["model_type"]).repair(raw)
    if mended != raw:
        write_config(path.parent, mended)


def _settings(to: str, dtype: torch.dtype, kept: list[str]) -> Any:
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if to == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=kept,
    )


def _choose(source: Source, to: str) -> tuple[list[str], int]:
    """Names of the linear layers that stay as they are, and how many do not."""
    with torch.device("meta"):
        model = text_class(source.config)(source.config)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    large = large_layers(model, source.config)
    kept = [name for name in linear if name not in large or large[name].in_features % _BLOCK[to]]
    return kept, len(linear) - len(kept)


def _identity(source: Source, to: str, dtype: torch.dtype) -> str:
    files = [source.folder / "config.json", *read_headers(source.folder)]
    return digest_of([to, str(dtype), importlib.metadata.version(PACKAGES[to]), *stamps(files)])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the packages say to their own authors: kernels that are not for this machine, casts."""
    loggers = [logging.getLogger(name) for name in ("torchao", "bitsandbytes", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
