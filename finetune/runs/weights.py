"""The weights of a checkpoint, written under the released names and read back strictly.

The names on disk are not the names in memory (the short convolutions are fused, norms renamed), so weights go through
the architecture's own conversion both ways. ``load_state_dict(strict=False)`` on the raw file, as transformers'
Trainer does it, leaves every renamed tensor at its old value and says so only in a log line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs.processes import Processes, whole
from hybrid_ft.hybrid_model.checkpoint.load import load

ADAPTER = "adapter_model.safetensors"


def save(model: PreTrainedModel | PeftModel, folder: Path, processes: Processes | None = None) -> None:
    """All weights with the config, or for LoRA the adapter with its config. Of several processes number 0 writes."""
    processes = processes or Processes()
    named = _named(model)
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


@torch.no_grad()
def send(whole: Mapping[str, torch.Tensor], pieces: Mapping[str, torch.Tensor]) -> None:
    """Process 0's tensors to the pieces of the same names, one at a time; in the others ``whole`` is empty."""
    for name, parameter in pieces.items():
        assert isinstance(parameter, DTensor)
        dtype, place = parameter.dtype, parameter.device
        if whole:  # a packed weight's own class would pack it again
            full = whole[name].detach().as_subclass(torch.Tensor).to(place)
        else:
            full = torch.empty(parameter.shape, dtype=dtype, device=place)
        parameter.copy_(distribute_tensor(full, parameter.device_mesh, parameter.placements))


def is_divided(model: torch.nn.Module) -> bool:
    """Whether it lies in pieces, so that it computes only where all processes do."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def in_pieces_again(model: torch.nn.Module) -> None:
    """After a forward without a backward. FSDP2 leaves the outermost unit gathered then, and its whole weights stand
    where an optimizer, a checkpoint or ``send`` looks for the pieces."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def load_into(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Put saved weights into ``model``: every tensor, in its dtype and shape. Raises InputError when one is missing or
    left over.

    Of one in pieces process 0 reads them, and sends each its own; all processes together.
    """
    if not is_divided(model):
        _put(model, _read(model, folder))
        return
    main = not dist.is_initialized() or dist.get_rank() == 0
    send(_read(model, folder) if main else {}, _named(model))


def _named(model: PreTrainedModel | PeftModel) -> dict[str, torch.Tensor]:
    """What is saved of a model, by the names it is saved under: its own parameters and buffers, and no copies."""
    now = model.state_dict(keep_vars=True)
    # "auto", the default, asks the hub whether the base's vocabulary was resized
    return get_peft_model_state_dict(model, now, save_embedding_layers=False) if isinstance(model, PeftModel) else now


def _read(model: PreTrainedModel | PeftModel, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, which are those of ``model`` in name, dtype and shape."""
    now = _named(model)
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
    return saved


def _put(model: PreTrainedModel | PeftModel, saved: dict[str, torch.Tensor]) -> None:
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, saved)
    else:
        model.load_state_dict(saved, strict=True)


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
