"""``hybrid-ft export``: a model in another form, read back and compared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import transformers

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.conversion.held_out import HeldOut
from hybrid_ft.finetune.conversion.place import Place
from hybrid_ft.finetune.conversion.source import Source, cache_bytes
from hybrid_ft.finetune.runs import storage
from hybrid_ft.finetune.runs.console import say
from hybrid_ft.hybrid_model.checkpoint.adapter_files import CONFIG as ADAPTER
from hybrid_ft.hybrid_model.checkpoint.config import find_folder, json_object, read_config
from hybrid_ft.hybrid_model.checkpoint.load import dtype_of
from hybrid_ft.hybrid_model.families.known import family_of
from hybrid_ft.hybrid_model.scorer import refuse_scorer

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("transformers", "int8", "int4", "gguf")
SHARD_SIZE = "5GB"
CACHE_TOKENS = 4096


def run(
    model: str,
    out: str,
    to: str,
    console: Console,
    dtype: str | None = None,
    shard_size: str | None = None,
    rows: str | None = None,
    kind: str | None = None,
) -> int:
    """Write ``model``, a folder or hub name, into a new folder ``out`` in the format ``to``. Returns the exit status.

    ``rows``: a file of conversations whose loss is measured before and after. Raises InputError for what a user can
    mend, before anything is written; files lie in ``OUT.part`` until all of them are written and compared.
    """
    transformers.utils.logging.disable_progress_bar()
    if to not in FORMATS:
        raise InputError(f"--to: got {to!r}; must be one of {', '.join(FORMATS)}")
    if shard_size is not None and to != "transformers":
        raise InputError(f"--shard-size: goes with --to transformers; {to} decides its files itself")
    if kind is not None and to != "gguf":
        raise InputError("--type: goes with --to gguf")
    if to == "gguf" and (dtype or rows):
        option, way = ("--dtype", "take --type") if dtype else ("--rows", "take llama.cpp's llama-perplexity")
        raise InputError(f"{option}: does not go with --to gguf; {way}")
    shard, wanted = size_of(shard_size or SHARD_SIZE), None if dtype is None else dtype_of(dtype)
    place = Place(Path(out).expanduser())
    source = _source(model)
    held_out = HeldOut.read(rows, source.folder) if rows else None
    say(console, f"model     {source.folder}: {family_of(source.config).name}")
    with console.status("exporting"):
        if to == "transformers":
            from hybrid_ft.finetune.conversion.plain import export_plain

            result = export_plain(source, place, wanted, shard)
        elif to == "gguf":
            from hybrid_ft.finetune.conversion.gguf.write import export_gguf

            result = export_gguf(source, place, kind or "f16")
        else:
            from hybrid_ft.finetune.conversion.quantised import export_quantised

            result = export_quantised(source, place, to, wanted)
    say(console, f"verified  {result.verified}")
    cache = cache_bytes(source.config, CACHE_TOKENS)
    say(
        console,
        f"size      {storage.size(result.bytes)} of weights; to run it takes about "
        f"{storage.size(1.1 * (result.bytes + cache))}, {storage.size(cache)} of them for {CACHE_TOKENS:,} tokens",
    )
    if held_out is not None and result.again is not None:
        with console.status("measuring the held-out rows"):
            before = held_out.loss(source.opened())
            after = held_out.loss(result.again(place.out))
        say(
            console,
            f"loss      {before:.4f} before, {after:.4f} after ({after - before:+.4f}) per token of {held_out.said}",
        )
    say(console, f"{to}: {place.out}")
    return 0


def size_of(text: str) -> int:
    """Bytes of ``5GB``, ``500MB`` or a number of bytes. Raises InputError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?B)?", text)
    size = int(float(match[1]) * {None: 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}[match[2]]) if match else 0
    if size < 1:
        raise InputError(f"--shard-size: got {text!r}; must be a size such as 5GB or 500MB")
    return size


def _source(model: str) -> Source:
    folder = Path(model).expanduser()
    folder = folder if folder.is_dir() else find_folder(model, weights=True)
    if (folder / ADAPTER).is_file():
        raise InputError(f"{folder}: is an adapter; make a model of it first: hybrid-ft merge {folder} OUT")
    if (folder / "config.json").is_file() and json_object(folder / "config.json").get("quantization_config"):
        raise InputError(f"{folder}: its weights are quantised already; export the checkpoint that they were made from")
    inner = folder / "model"
    if not (folder / "config.json").is_file() and (inner / "config.json").is_file():
        raise InputError(f"{folder}: no config.json; did you mean {inner}?")
    config = read_config(folder)
    refuse_scorer(config, folder)
    return Source(folder, config)
