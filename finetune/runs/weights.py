"""The weights of a checkpoint, written under the released names and read back strictly.

The names on disk are not the names in memory (the short convolutions are fused, norms renamed), so weights go through
the architecture's own conversion both ways. ``load_state_dict(strict=False)`` on the raw file, as transformers'
Trainer does it, leaves every renamed tensor at its old value and says so only in a log line.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs.processes import Processes, whole
from hybrid_ft.hybrid_model.checkpoint.load import load

ADAPTER = "adapter_model.safetensors"


def save(model: PreTrainedModel | PeftModel, folder: Path, processes: Processes | None = None) -> None:
    """All weights with the config, or for LoRA the adapter with its config. Of several processes number 0 writes."""
    processes = processes or Processes()
    named = _adapter(model) if isinstance(model, PeftModel) else model.state_dict(keep_vars=True)
    put_together: dict[int, torch.Tensor] = {}
    # a tied head stays one tensor with its embedding
    for key, tensor in {id(tensor): tensor for tensor in named.values()}.items():
        found = whole(tensor.detach())
        if processes.main:
            # pieces put together lie with the model's on the GPU, which has no room for all of them
            put_together[key] = found.cpu() if isinstance(tensor, DTensor) else found
    if not processes.main:
        return
    tensors = {name: put_together[id(tensor)] for name, tensor in named.items()}
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        # a tied head and its embedding are one tensor, which safetensors does not write twice
        apart = {name: tensor.clone() for name, tensor in tensors.items()}
        save_file(apart, folder / ADAPTER, metadata={"format": "pt"})
        model.peft_config["default"].save_pretrained(str(folder))
    else:
        # not checkpoint.save, which writes A_log and dt_bias in the model's dtype
        model.save_pretrained(folder, state_dict=tensors, max_shard_size="5GB")


@torch.no_grad()
def are_finite(parameters: Iterable[torch.nn.Parameter]) -> bool:
    """As far as they lie with this process."""
    pieces = (part.to_local() if isinstance(part, DTensor) else part for part in parameters)
    return all(bool(torch.isfinite(piece).all()) for piece in pieces)


def load_into(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Put saved weights into ``model``: every tensor, in its dtype and shape. Raises InputError when one is missing or left over."""
    now = _adapter(model) if isinstance(model, PeftModel) else model.state_dict()
    if isinstance(model, PeftModel):
        try:
            saved = load_file(folder / ADAPTER)
        except SafetensorError as error:
            raise InputError(f"{folder / ADAPTER}: not a safetensors file ({error}); remove this checkpoint") from None
    else:
        saved = load(folder, dtype=model.dtype).state_dict()
    odd = sorted(now.keys() ^ saved.keys())
    if odd:
        where = "missing in" if odd[0] in now else "not of this model, but in"
        raise InputError(f"{folder}: {odd[0]} is {where} this checkpoint ({len(odd)} such tensors)")
    for name, tensor in saved.items():
        if tensor.shape != now[name].shape or tensor.dtype != now[name].dtype:
            raise InputError(f"{folder}: {name} is {_kind(tensor)} in this checkpoint, {_kind(now[name])} in the model")
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, saved)
    else:
        model.load_state_dict(saved, strict=True)


def _adapter(model: PeftModel) -> dict[str, torch.Tensor]:
    # "auto", the default, asks the hub whether the base's vocabulary was resized
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
