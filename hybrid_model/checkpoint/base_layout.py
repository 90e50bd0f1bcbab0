"""A result in its base's layout: the base's files with trained tensors.

Names, shapes, shards and config are the base's, so that the result is served wherever the base is. What is not part of
the text model (a vision tower, extra heads) is copied, and so is every tensor that training left as it was, byte for
byte.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.agreement import difference_of_logits
from hybrid_ft.hybrid_model.checkpoint.config import FOREIGN, json_object, read_config
from hybrid_ft.hybrid_model.checkpoint.text_model import is_carried, reopened
from hybrid_ft.hybrid_model.checkpoint.weight_files import INDEX, read_headers
from hybrid_ft.hybrid_model.families.family import is_scorer
from hybrid_ft.hybrid_model.families.known import family_of

_BESIDE = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_HALF = (torch.bfloat16, torch.float16)


def save_in_base_layout(model: PreTrainedModel, folder: Path) -> None:
    """Write the text model ``model``, which was loaded from a checkpoint, into ``folder`` as that checkpoint has it.

    A tensor has the base's dtype; where the model is in 16 bits and the base is in 32, the base's main dtype gives way.
    A model that was made from a config is written as transformers writes it. Raises InputError where the base is gone.
    """
    base: Path | None = getattr(model, "checkpoint_folder", None)
    if base is None:
        model.save_pretrained(folder, max_shard_size="5GB")
        return
    if not (base / "config.json").is_file():
        raise InputError(f"{base}: the base is gone, and the result takes its layout from there; put it back")
    folder.mkdir(parents=True, exist_ok=True)
    headers = read_headers(base)
    trained = _file_tensors(model, {name for header in headers.values() for name in header})
    narrow, grown, written = _narrowed(model, headers), _grown(base, model), set[str]()
    for path in headers:
        tensors = {}
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is not iterable
                own = trained.get(name)
                old = file.get_tensor(name)
                written.add(name)
                tensors[name] = old if own is None else _as_in_base(own, old, narrow, grown)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / path.name, {"format": "pt"})
    if lost := sorted(trained.keys() - written):
        raise RuntimeError(f"{base}: has no place for {lost[0]} ({len(lost)} such)")
    if (base / INDEX).is_file():
        index = json_object(base / INDEX)
        if grown:
            index["metadata"] = {"total_size": sum(path.stat().st_size for path in folder.glob("*.safetensors"))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    write_config_of_base(base, folder, model.config, narrow, grown[1] if grown else None)


def write_config_of_base(
    base: Path, folder: Path, config: PreTrainedConfig, dtype: torch.dtype | None, vocabulary: int | None
) -> None:
    """The base's ``config.json`` and what lies beside a multimodal model, with another dtype or vocabulary where
    given."""
    for name in _BESIDE:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    raw = {key: value for key, value in json_object(base / "config.json").items() if not key.startswith(FOREIGN)}
    raw = family_of(config).repair(raw)
    if dtype is not None:
        for part in (raw, raw.get("text_config") or {}):
            part.pop("torch_dtype", None)
            part["dtype"] = str(dtype).removeprefix("torch.")
    if vocabulary is not None:
        part = raw.get("text_config") or raw
        part["vocab_size"] = vocabulary
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def place_of(
    model: PreTrainedModel, name: str, tensor: torch.Tensor, places: Mapping[str, Sequence[int]]
) -> str | None:
    """The name under which a tensor in memory lies in the base's files, which hold ``places`` of these shapes; None
    where it is joined of several there, or cut."""
    written = revert_weight_conversion(model, {name: tensor})
    if len(written) > 1:
        return None
    place = _in_files(model, next(iter(written)), places)
    return place if list(places.get(place, ())) == list(tensor.shape) else None


def verify_in_base_layout(folder: Path, model: PreTrainedModel) -> float:
    """Open what was saved with plain transformers and compare it with the model in memory, and its
    files with the base's.

    Returns the relative L2 difference of the logits of 64 tokens. Raises RuntimeError for a tensor that the base has
    not or that is missing, of another shape, or not its own bytes where nothing was trained; for weights that differ by
    more than the rounding to their dtype; and for logits that differ by more than two implementations may.
    """
    base: Path | None = getattr(model, "checkpoint_folder", None)
    if base is not None:
        _compare_files(base, folder, model)
    config = read_config(folder)
    plain = reopened(folder, config)
    eps = 2 ** (
        -8 if torch.bfloat16 in _dtypes(folder, model) else -10 if torch.float16 in _dtypes(folder, model) else -22
    )
    for name, tensor in model.state_dict().items():
        ours, theirs = tensor.detach().cpu().double(), plain.state_dict()[name].double()
        if float((ours - theirs).norm()) > eps * float(ours.norm()):
            raise RuntimeError(f"{folder}: {name} is not as it is in memory")
    # a reward model gives one number a row
    tokens = torch.randint(
        config.vocab_size, (8, 64) if is_scorer(config) else (1, 64), generator=torch.Generator().manual_seed(0)
    )
    ran = copy.deepcopy(model).cpu().float().eval()
    ran.load_state_dict(plain.state_dict())
    return difference_of_logits(ran, plain, tokens, folder)


def _file_tensors(model: PreTrainedModel, places: set[str]) -> dict[str, torch.Tensor]:
    """The model's tensors on the CPU, under the names that its base's files have, which are ``places``."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    once = revert_weight_conversion(model, remove_tied_weights_from_state_dict(dict(state), model))
    renamed = {_in_files(model, name, places): tensor for name, tensor in once.items()}
    # a head that is the embedding, and that the base's files hold all the same
    renamed |= {name: state[name].clone() for name in (places & state.keys()) - renamed.keys()}
    return renamed


def _in_files(model: PreTrainedModel, name: str, places: Collection[str]) -> str:
    """A name of transformers' as the base's files have it."""
    others = [name.replace(old, new) for old, new in family_of(model.config).rewritten]
    return next((other for other in others if name not in places and other in places), name)


def _narrowed(model: PreTrainedModel, headers: dict[Path, dict[str, Any]]) -> torch.dtype | None:
    """The model's dtype where it is in 16 bits and its base mainly in 32."""
    counts = Counter(entry["dtype"] for header in headers.values() for entry in header.values())
    return model.dtype if counts.most_common(1)[0][0] == "F32" and model.dtype in _HALF else None


def _grown(base: Path, model: PreTrainedModel) -> tuple[int, int] | None:
    """Rows of the vocabulary in the base and in the model, where the model has got more."""
    before, now = read_config(base).vocab_size, model.config.vocab_size
    return (before, now) if now > before else None


def _fits(new: Sequence[int], old: Sequence[int], grown: tuple[int, int] | None) -> bool:
    """The same shape, or that of an embedding or head that has grown."""
    same = list(new) == list(old)
    return same or (grown is not None and len(old) == 2 and (old[0], new[0]) == grown and new[1] == old[1])


def _as_in_base(
    own: torch.Tensor, old: torch.Tensor, narrow: torch.dtype | None, grown: tuple[int, int] | None
) -> torch.Tensor:
    """A trained tensor in its place; the base's own bytes where it is what loading made of them."""
    if not _fits(own.shape, old.shape, grown):
        raise RuntimeError(f"a tensor has shape {list(own.shape)}, {list(old.shape)} in the base")
    if own.dtype != torch.float32 and narrow is not None:
        return own
    if own.shape != old.shape:
        return own.to(old.dtype)
    return old if torch.equal(old.to(own.dtype), own) else own.to(old.dtype)


def _compare_files(base: Path, folder: Path, model: PreTrainedModel) -> None:
    """Names, shapes and places are the base's; what is carried is the base's bytes."""
    family = family_of(model.config)
    before, after, grown = read_headers(base), read_headers(folder), _grown(base, model)
    if sorted(path.name for path in before) != sorted(path.name for path in after):
        raise RuntimeError(f"{folder}: has other weight files than {base}")
    for path, header in before.items():
        saved = after[folder / path.name]
        for name in header.keys() ^ saved.keys():
            raise RuntimeError(f"{folder}: tensor {name} is only in one of the result and its base")
        for name, entry in header.items():
            if not _fits(saved[name]["shape"], entry["shape"], grown):
                raise RuntimeError(f"{folder}: tensor {name} has shape {saved[name]['shape']}, not {entry['shape']}")
            if is_carried(family, name):
                with safe_open(path, framework="pt") as one, safe_open(folder / path.name, framework="pt") as other:
                    if not torch.equal(one.get_tensor(name), other.get_tensor(name)):
                        raise RuntimeError(f"{folder}: tensor {name} is carried along and differs from the base's")


def _dtypes(folder: Path, model: PreTrainedModel) -> set[torch.dtype]:
    """What its files round to, at the coarsest."""
    named = {"BF16": torch.bfloat16, "F16": torch.float16}
    kinds = {entry["dtype"] for header in read_headers(folder).values() for entry in header.values()}
    return {named[kind] for kind in kinds if kind in named} | {model.dtype} & set(_HALF)
