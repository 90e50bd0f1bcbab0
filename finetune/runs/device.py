"""The device that a process computes on: kind, name, bfloat16, memory."""

from __future__ import annotations

import os

import torch


def kind() -> str:
    """``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if is_gpu() else "cpu"


def is_gpu() -> bool:
    """Whether there is one, and it is wanted."""
    return torch.cuda.is_available() and not is_put_off()


def is_put_off() -> bool:
    """Whether ``accelerate launch --cpu`` has started this process: transformers and accelerate heed that too."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "on", "t")


def name() -> str:
    """What the last bits of a result depend on beside the run's identity: another device may round differently."""
    return torch.cuda.get_device_name() if is_gpu() else "cpu"


def count() -> int:
    """GPUs of this machine."""
    return torch.cuda.device_count()


def has_bfloat16() -> bool:
    """Whether bfloat16 is in the hardware; a CPU computes it in any case."""
    return not is_gpu() or torch.cuda.is_bf16_supported(including_emulation=False)


def memory() -> tuple[int, int]:
    """Bytes of this process's GPU: free, and in all."""
    return torch.cuda.mem_get_info()


def peak_memory() -> int:
    """Bytes: of the GPU's allocator, or of this process on a CPU."""
    if is_gpu():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
