"""Export to a GGUF file, read back and compared."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hybrid_ft.errors import ENVIRONMENT, InputError, one_line
from hybrid_ft.finetune.conversion.gguf.architectures import (
    ARCHITECTURES,
    Architecture,
    architecture_of,
    common_settings,
)
from hybrid_ft.finetune.conversion.gguf.experts import read_tensors
from hybrid_ft.finetune.conversion.gguf.words import split_name, write_words
from hybrid_ft.finetune.conversion.place import Place
from hybrid_ft.finetune.conversion.rewrite import Rewrite
from hybrid_ft.finetune.conversion.source import Result, Source
from hybrid_ft.finetune.runs import storage
from hybrid_ft.hybrid_model.checkpoint.config import json_object
from hybrid_ft.hybrid_model.checkpoint.text_model import is_carried
from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer
from hybrid_ft.hybrid_model.checkpoint.usual_mode import give_usual_mode
from hybrid_ft.hybrid_model.families.known import family_of

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_k_m")
QUANTIZE = "llama-quantize"
"""llama.cpp's tool, which alone makes q4_k_m."""
# Small, and what llama.cpp computes with in float32; most norms and biases are told by their one dimension.
_FLOAT32 = re.compile(r".*(\.(ssm_conv1d(_[qkv])?|shortconv\.conv|ffn_gate_inp)|_norm)\.weight")
_WORST = {"f32": 0.0, "f16": 1e-3, "bf16": 8e-3, "q8_0": 2e-2, "q4_k_m": 0.2}
"""Relative L2 error of a tensor after reading it back."""


def export_gguf(source: Source, place: Place, kind: str) -> Result:
    """Write one file of ``kind``, one of ``TYPES``. Raises InputError for a family, tokenizer or machine that cannot,
    before anything is written."""
    architecture = _architecture(source, kind)
    split_name(source.folder)
    rewrite = Rewrite(source.folder, source.config, None, 2**62)
    tokenizer = load_tokenizer(source.folder)
    first = "f16" if kind == "q4_k_m" else kind
    place.check_room(2 * rewrite.bytes)
    with place.held(f"gguf {kind} {rewrite.identity()}") as part, storage.saving(place.out, rewrite.bytes):
        file = part / f"{place.out.name}-{first.upper()}.gguf"
        _write(file, source, architecture, rewrite, tokenizer, first)
        worst = _verify(file, source, architecture, rewrite, first)
        if kind == "q4_k_m":
            small = part / f"{place.out.name}-Q4_K_M.gguf"
            _quantise(file, small)
            worst = _verify(small, source, architecture, rewrite, kind)
            file.unlink()
            file = small
        give_usual_mode([file])
        size = file.stat().st_size
        place.publish(part)
    said = f"{len(rewrite.stored):,} tensors read back by the gguf package, at most {worst:.1e} off the source's"
    return Result(size, said, None)


def _architecture(source: Source, kind: str) -> Architecture:
    if kind not in TYPES:
        raise InputError(f"--type: got {kind!r}; must be one of {', '.join(TYPES)}")
    found = architecture_of(source.config)
    if found is None:
        known = ", ".join(ARCHITECTURES)
        raise InputError(
            f"--to gguf: {family_of(source.config).name} ({source.config.model_type}) cannot be converted; known are {known}; "
            "int8 and int4 are there for all families"
        )
    if (reason := found.refused(source.config)) is not None:
        raise InputError(f"--to gguf: {family_of(source.config).name} cannot be converted: {reason}")
    if importlib.util.find_spec("gguf") is None:
        raise InputError("--to gguf: needs the package gguf; pip install 'hybrid-ft[gguf]'", ENVIRONMENT)
    import gguf

    if not hasattr(gguf.MODEL_ARCH, found.name):
        raise InputError(f"--to gguf: the installed gguf package has no {found.name}; upgrade it", ENVIRONMENT)
    if kind == "q4_k_m" and shutil.which(QUANTIZE) is None:
        raise InputError(
            f"--type q4_k_m: needs llama.cpp's {QUANTIZE} on PATH; put it there, or take q8_0", ENVIRONMENT
        )
    return found


def _tensors(source: Source, architecture: Architecture, rewrite: Rewrite) -> Iterator[tuple[str, torch.Tensor]]:
    """Name in the file and float32 values of each tensor; what is carried beside the text model is left out."""
    import gguf

    family = family_of(source.config)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.name), source.config.num_hidden_layers)
    wanted = {
        name.replace("model.language_model.", "model."): stored
        for name, stored in rewrite.stored.items()
        if not is_carried(family, name)
    }
    if source.config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    for plain, values in read_tensors(wanted):
        for name, tensor in architecture.tensor(plain, values, source.config):
            found = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if found is None:
                raise InputError(f"{source.folder}: tensor {plain} has no place in a GGUF file of {architecture.name}")
            yield found, tensor.contiguous()


def _type_of(name: str, shape: tuple[int, ...], kind: str) -> Any:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) < 2 or not name.endswith(".weight") or _FLOAT32.fullmatch(name):
        return GGMLQuantizationType.F32
    wanted = GGMLQuantizationType[kind.upper()]
    return wanted if shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else GGMLQuantizationType.F16


def _write(
    file: Path,
    source: Source,
    architecture: Architecture,
    rewrite: Rewrite,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
) -> None:
    """Headers first, then each tensor by itself; the file has its name when it is whole."""
    import gguf
    from gguf.quants import quant_shape_to_byte_shape, quantize

    staged = file.with_name(f".{file.name}")
    arch = gguf.MODEL_ARCH_NAMES[getattr(gguf.MODEL_ARCH, architecture.name)]
    writer = gguf.GGUFWriter(staged, arch)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(source.folder.name)
    common_settings(writer, source.config)
    architecture.settings(writer, source.config)
    writer.add_file_type({"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_words(writer, source.folder, tokenizer, source.config.vocab_size, _ends(source, tokenizer))
    for name, tensor in _tensors(source, architecture, rewrite):
        shape, of = tuple(tensor.shape), _type_of(name, tuple(tensor.shape), kind)
        plain = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}.get(of)
        if plain is None:
            size = int(np.prod(quant_shape_to_byte_shape(shape, of)))
            writer.add_tensor_info(name, quant_shape_to_byte_shape(shape, of), np.dtype(np.uint8), size, raw_dtype=of)
        else:
            writer.add_tensor_info(name, shape, np.dtype(plain), tensor.numel() * np.dtype(plain).itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in _tensors(source, architecture, rewrite):
        writer.write_tensor_data(quantize(tensor.numpy(), _type_of(name, tuple(tensor.shape), kind)))
    writer.close()
    with staged.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(staged, file)


def _ends(source: Source, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    path = source.folder / "generation_config.json"
    given = json_object(path).get("eos_token_id") if path.is_file() else None
    given = tokenizer.eos_token_id if given is None else given
    return given if isinstance(given, list) else [] if given is None else [given]


def _verify(file: Path, source: Source, architecture: Architecture, rewrite: Rewrite, kind: str) -> float:
    """The largest relative L2 error of a tensor, read back. Raises RuntimeError for one that is missing, left over, of
    another shape, or further off than its type may be."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    read = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    worst = 0.0
    for name, wanted in _tensors(source, architecture, rewrite):
        if name not in read:
            raise RuntimeError(f"{file}: {name} is missing")
        tensor = read.pop(name)
        found = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        if found.shape != wanted.shape:
            raise RuntimeError(f"{file}: {name} has shape {list(found.shape)}, not {list(wanted.shape)}")
        error = float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))
        limit = 0.0 if tensor.tensor_type.name == "F32" else _WORST[kind]
        if not error <= limit:
            raise RuntimeError(f"{file}: {name} is {error:.1e} off the source's (at most {limit:.0e})")
        worst = max(worst, error)
    if read:
        raise RuntimeError(f"{file}: holds {min(read)}, which the model has not")
    return worst


def _quantise(file: Path, small: Path) -> None:
    staged = small.with_name(f".{small.name}")
    command = [QUANTIZE, str(file), str(staged), "Q4_K_M"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"{QUANTIZE}: cannot be started: {error.strerror}; install it again", ENVIRONMENT) from None
    if done.returncode or not staged.is_file():
        raise InputError(f"{QUANTIZE}: failed: {one_line(done.stderr[-300:])}", ENVIRONMENT)
    os.replace(staged, small)
