"""Weights, gradients and moments in pieces over the processes, by torch's FSDP2."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from hybrid_ft.finetune.runs import device


def shard(model: PreTrainedModel | PeftModel, accelerator: Accelerator) -> None:
    """Divide every layer by itself, and the embedding, last norm and head with the model.

    They are gathered in the dtype they are kept in: a layer's policy holds for all of its weights, and ``A_log`` and
    ``dt_bias`` are not to be rounded. Arithmetic in bfloat16 is autocast's, as in one process.

    accelerate would divide the last norm and the head as a unit of their own, which a fused head, that never calls the
    head, leaves undivided after the first step.
    """
    divide(model, init_device_mesh(device.kind(), (accelerator.num_processes,)))


def divide(model: PreTrainedModel | PeftModel, mesh: DeviceMesh) -> None:
    """FSDP2's units: each layer, and the rest with the model."""
    policy = MixedPrecisionPolicy(param_dtype=None, reduce_dtype=torch.float32)
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    for layer in plain.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
