"""Weights, gradients and moments in pieces over all processes or a machine's, by FSDP2."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.models import in_bfloat16
from hybrid_ft.finetune.runs import device, weights
from hybrid_ft.finetune.runs.processes import be_patient, number_told
from hybrid_ft.hybrid_model.families.known import family_of
from hybrid_ft.hybrid_model.quantised import tables

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Recipe

_FEW = 1 / 50
"""of the layers' numbers may stay gathered through a step, or a few MB"""

_Unit = tuple[nn.Module, list[nn.Parameter], torch.dtype | None]
"""A module, what of it is gathered when it is called, and as what; None: as it is kept."""


def pieces(processes: int, sharded: bool | str) -> int:
    """In how many pieces the model lies. Raises InputError, status 3, for machines with
    different numbers of processes."""
    if not sharded:
        return 1
    here = number_told("LOCAL_WORLD_SIZE", 1) if sharded == "machine" and processes > 1 else processes
    if processes % here:
        raise InputError(
            f"train.sharded: got machine with {here} of {processes} processes on this machine; each machine must have as "
            "many; start as many on each, or set train.sharded: true",
            ENVIRONMENT,
        )
    return here


def can_be_sent(recipe: Recipe, processes: int) -> bool:
    """Whether process 0 reads the weights alone and sends each its pieces."""
    return processes > 1 and bool(recipe.train.sharded)


def shard(model: PreTrainedModel | PeftModel, accelerator: Accelerator, recipe: Recipe, of_main: bool = False) -> None:
    """Divide the model over all processes, or each machine's. ``of_main``: process 0 alone has the values,
    and sends the pieces.

    accelerate would divide the last norm and the head as a unit of their own, which a fused head, that never calls the
    head, leaves undivided after the first step.
    """
    mesh = _mesh(accelerator.num_processes, pieces(accelerator.num_processes, recipe.train.sharded))
    whole = dict(model.named_parameters()) if of_main and accelerator.process_index == 0 else {}
    # NEFTune's noise is by documents, whose lengths differ from process to process; a unit is called equally often
    divide(model, mesh, in_bfloat16(recipe), recipe.train.neftune_alpha is None)
    if of_main:
        weights.send(whole, dict(model.named_parameters()))
        for tensor in (*model.buffers(), *tables(model)):
            dist.broadcast(tensor, 0)


def _mesh(processes: int, here: int) -> DeviceMesh:
    """One dimension; or machines, with a copy on each, by the processes of one, whose ranks follow each other."""
    if here == processes:
        return init_device_mesh(device.kind(), (processes,))
    mesh = init_device_mesh(device.kind(), (processes // here, here), mesh_dim_names=("copy", "piece"))
    for group in mesh.get_all_groups():
        be_patient(group)
    return mesh


def divide(model: PreTrainedModel | PeftModel, mesh: DeviceMesh, bfloat16: bool, embedding_alone: bool = True) -> None:
    """FSDP2's units: each layer, the embedding, and the rest with the model. ``bfloat16``: autocast's, around forward.

    A layer's matrices are gathered in the dtype in which they are multiplied. autocast would cast them to the same
    bits after twice the bytes had been sent, and their gradients come in bfloat16 either way. What is read in float32
    (norms, convolutions, the decay rates ``A_log`` and ``dt_bias``; the head, whose gradient is float32) goes with
    the rest, which is gathered once a step, because FSDP2 gives one dtype to each of its groups. Experts, which
    transformers multiplies as they are kept, are units of their own. Adapters and what lies under them are gathered
    as they are kept.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    times = Counter(p for layer in plain.base_model.layers for p in layer.parameters())
    # a block that several layers share goes with the rest
    units: list[_Unit] = [
        (layer, [p for p in layer.parameters() if times[p] == 1], None) for layer in plain.base_model.layers
    ]
    narrow = set() if isinstance(model, PeftModel) else _narrow(plain, bfloat16)
    experts = _experts(plain, narrow) if narrow else []
    if narrow and _few_are_left(units, narrow.union(*(own for _, own, _ in experts))):
        units = [(layer, [p for p in own if p in narrow], torch.bfloat16) for layer, own, _ in units] + experts
        embedding, head = plain.get_input_embeddings(), plain.get_output_embeddings()
        if embedding_alone and head is not None and head.weight is not embedding.weight:
            units.append((embedding, [embedding.weight], None))
    inside = {p for _, own, _ in units for p in own}
    rest = [p for p in model.parameters() if p not in inside]
    # from the outside to the inside: what lies below a unit that is there already would be passed over
    wide = [p for p in rest if p.dtype == torch.float32]
    if narrow and 0 < len(wide) < len(rest):  # weights in bfloat16, and float32 decay rates
        # the second unit goes round the same forward and needs no gathering before backward: no hook on what it gives
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
        _unit(model, [p for p in rest if p.dtype != torch.float32], mesh, None)
        _unit(plain.base_model, wide, mesh, None).set_reshard_after_forward(False, recurse=False)
    else:
        _unit(model, rest, mesh, None)
    for module, own, dtype in units:
        _unit(module, own, mesh, dtype).set_unshard_in_backward(not isinstance(module, nn.Embedding))


def _narrow(plain: PreTrainedModel, bfloat16: bool) -> set[nn.Parameter]:
    """Of the layers, the matrices that are multiplied in bfloat16, and what is kept in it. Frozen routers are looked up
    in float32, and so are biases: a scan reads Mamba's of the steps as it is kept."""
    linear = [m for layer in plain.base_model.layers for m in layer.modules() if bfloat16 and isinstance(m, nn.Linear)]
    multiplied = {p for m in linear for p in m.parameters(recurse=False) if p is m.weight and p.requires_grad}
    return multiplied | {p for p in plain.parameters() if p.dtype == torch.bfloat16}


def _experts(plain: PreTrainedModel, narrow: set[nn.Parameter]) -> list[_Unit]:
    """The modules that hold a layer's routed experts as parameters."""
    names = {name.rpartition(".")[0] for name in family_of(plain.config).experts}
    found = [dict(layer.named_modules()) for layer in plain.base_model.layers]
    held = [modules[name] for modules in found for name in sorted(names) if name in modules]
    units = [(module, [p for p in module.parameters() if p not in narrow], None) for module in held]
    return [unit for unit in units if unit[1]]


def _few_are_left(units: list[_Unit], taken: set[nn.Parameter]) -> bool:
    """Whether what is not taken of the layers can stay gathered."""
    whole = sum(p.numel() for _, own, _ in units for p in own)
    left = sum(p.numel() for _, own, _ in units for p in own if p not in taken)
    return left <= max(_FEW * whole, 2**20)


def _unit(
    module: nn.Module, wanted: Collection[nn.Parameter], mesh: DeviceMesh, dtype: torch.dtype | None
) -> FSDPModule:
    """Of ``wanted`` below the module, gathered as ``dtype`` when it is called."""
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    return fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=set(module.parameters()) - set(wanted))
