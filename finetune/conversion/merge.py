"""``hybrid-ft merge``: an adapter and its base become one model, verified and resumable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.conversion.place import Place
from hybrid_ft.finetune.data.tokens.prompts import PromptEncoder
from hybrid_ft.finetune.runs import storage
from hybrid_ft.finetune.runs.console import say
from hybrid_ft.finetune.runs.next_commands import next_commands
from hybrid_ft.hybrid_model.checkpoint.adapter_files import CONFIG, read_config, scores
from hybrid_ft.hybrid_model.checkpoint.config import check_generation_config, find_folder, json_object
from hybrid_ft.hybrid_model.checkpoint.config import read_config as read_base_config
from hybrid_ft.hybrid_model.checkpoint.generation_config import GenerationDefaults, generation_defaults
from hybrid_ft.hybrid_model.checkpoint.load import dtype_of, load
from hybrid_ft.hybrid_model.checkpoint.merge import Merge
from hybrid_ft.hybrid_model.checkpoint.merge_in_memory import merge_in_memory
from hybrid_ft.hybrid_model.checkpoint.merge_places import Unplaced
from hybrid_ft.hybrid_model.checkpoint.save import save, verify
from hybrid_ft.hybrid_model.checkpoint.tokenizer import check_vocabulary, load_tokenizer
from hybrid_ft.hybrid_model.checkpoint.whole_merge import OPENED_WHOLE, compare_with_peft
from hybrid_ft.hybrid_model.families.family import is_scorer

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class _Described:
    config: Any
    generation_config: GenerationConfig


def run(adapter: str, out: str, dtype: str | None, console: Console) -> int:
    """Merge the adapter folder or hub name ``adapter`` into a new folder ``out``. Returns the exit status.

    The memory is that of a few rows of a weight, whatever the model's size. Files lie in ``OUT.part`` until all of them
    are written and read back. Raises InputError for what a user can mend, before anything is written.
    """
    transformers.utils.logging.disable_progress_bar()
    place = Place(Path(out).expanduser())
    folder = _adapter_folder(adapter)
    raw = read_config(folder)
    try:
        base = find_folder(raw["base_model_name_or_path"], raw.get("revision"), weights=True)
        _refuse_quantised(base, raw)
        config = read_base_config(base)
        asked = None if dtype is None else dtype_of(dtype)
        merge = None if scores(raw) else _by_files(folder, base, config, asked)
        if merge is None:
            return _in_memory(folder, base, dtype, place, console)
    except InputError as error:
        named = f"{folder / CONFIG}: base_model_name_or_path: "
        raise InputError(str(error) if str(folder) in str(error) else f"{named}{error}", error.status) from None
    tokenizer = load_tokenizer(folder if _has_tokenizer(folder) else base)
    check_vocabulary(tokenizer, config)
    defaults = _defaults(folder, base, config, tokenizer)
    place.check_room(merge.bytes)
    say(console, f"base      {base}")
    say(console, f"adapter   {folder}: {len(merge.changed):,} of {len(merge.dtypes):,} tensors change")
    with place.held(merge.identity()) as part, storage.saving(place.out, merge.bytes):
        with console.status("merging") as live:
            merge.write(part, lambda done, of: live.update(f"merging: {done} of {of} files"))
            _write_small_files(part, merge, tokenizer, defaults)
            live.update("reading back what was written")
            merge.verify(part)
            read_back = f"every tensor read back from {storage.size(merge.bytes)}"
            if merge.parameters <= OPENED_WHOLE:
                live.update("comparing with PEFT's merge in plain transformers")
                difference = compare_with_peft(merge, part)
                read_back += f"; logits within {difference:.0e} of PEFT's own merge in plain transformers"
        place.publish(part)
    say(console, f"verified  {read_back}")
    _show(place, config, console)
    return 0


def _by_files(folder: Path, base: Path, config: Any, dtype: torch.dtype | None) -> Merge | None:
    """None where a changed weight lies in several tensors of the base's files."""
    try:
        return Merge(folder, base, config, dtype)
    except Unplaced:
        return None


def _in_memory(folder: Path, base: Path, dtype: str | None, place: Place, console: Console) -> int:
    """For weights that transformers' own conversions join from several tensors, and for reward models."""
    if dtype is not None:
        raise InputError(
            "--dtype: this adapter is merged in its base's dtypes; leave it out, then use hybrid-ft export --to transformers"
        )
    with console.status("loading the base"):
        model = load(base, scores=scores(read_config(folder)))
    tokenizer = load_tokenizer(folder if _has_tokenizer(folder) else base)
    check_vocabulary(tokenizer, model.config)
    if is_scorer(model.config):
        model.config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    place.check_room(needed)
    defaults = _defaults(folder, base, model.config, tokenizer)
    changed = merge_in_memory(model, folder)
    say(console, f"base      {base}")
    say(console, f"adapter   {folder}: {changed:,} tensors change; {model.config.model_type} is merged in memory")
    with place.held(f"{folder} {base}") as part, storage.saving(place.out, needed):
        save(model, part, tokenizer)
        if not is_scorer(model.config):
            defaults.config.save_pretrained(part)
        difference = verify(part, model)
        place.publish(part)
    say(console, f"verified  logits in plain transformers within {difference:.0e} of the model in memory")
    _show(place, model.config, console)
    return 0


def _show(place: Place, config: Any, console: Console) -> None:
    say(console, f"model: {place.out}")
    for number, line in enumerate(next_commands([place.out], config.model_type, is_scorer(config))):
        say(console, f"{'' if number else 'next':10}{line}")


def _adapter_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file():
        return folder
    if not folder.is_dir():
        folder = find_folder(name, weights=True)
        if (folder / CONFIG).is_file():
            return folder
    inner = folder / "adapter"
    hint = f"; did you mean {inner}?" if (inner / CONFIG).is_file() else "; name a folder that PEFT has saved"
    raise InputError(f"{folder / CONFIG}: missing{hint}")


def _refuse_quantised(base: Path, raw: dict[str, Any]) -> None:
    if (base / "config.json").is_file() and json_object(base / "config.json").get("quantization_config"):
        lost = "rounding them again would undo part of the training"
        if raw.get("use_dora"):
            lost = "DoRA's lengths are those of weights that rounding would change"
        raise InputError(
            f"{base / 'config.json'}: quantization_config: the base's weights are quantised, and {lost}; name the checkpoint "
            "that they were made from"
        )


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file()


def _defaults(folder: Path, base: Path, config: Any, tokenizer: PreTrainedTokenizerBase) -> GenerationDefaults:
    """The adapter's where it has some, or else the base's."""
    generation = GenerationConfig.from_model_config(config)
    for place in (folder, base):
        check_generation_config(place, config)
        if (place / "generation_config.json").is_file():
            generation = GenerationConfig.from_dict(json_object(place / "generation_config.json"))
            break
    try:
        ends = PromptEncoder(tokenizer).eos_token_ids
    except InputError:  # a base model's tokenizer may have no chat template
        ends = []
    return generation_defaults(_Described(config, generation), tokenizer, ends)


def _write_small_files(
    part: Path, merge: Merge, tokenizer: PreTrainedTokenizerBase, defaults: GenerationDefaults
) -> None:
    merge.write_config(part)
    defaults.config.save_pretrained(part)
    tokenizer.save_pretrained(part)
