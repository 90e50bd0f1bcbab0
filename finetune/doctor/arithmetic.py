"""What the GPUs compute: versions, the kernels' self-test, rate and evenness."""

from __future__ import annotations

import importlib.metadata
import os
import time

import torch

from hybrid_ft.errors import one_line
from hybrid_ft.finetune.data.report.account import counted
from hybrid_ft.finetune.doctor.finding import Finding, absent
from hybrid_ft.finetune.planning.gpus import read_table
from hybrid_ft.finetune.runs import device

HEADS, DIMS = (30, 30), (96, 192)
"""of Olmo Hybrid 7B: what is asked where no recipe is given"""
_SIDE, _TIMES = 8192, 10
_LEAST, _UNEVEN = 0.6, 0.1
"""share of a kind's stated rate, and relative difference between GPUs of a machine, that make a check red"""


def versions() -> Finding:
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    cuda = torch.version.cuda
    said = f"torch {torch.__version__}, CUDA {cuda or 'none'}, triton {triton}"
    if device.is_gpu() and triton == "none":
        return Finding("versions", f"{said}; the kernels need triton: pip install triton", red=True)
    return Finding("versions", said)


def unseen(listed: int) -> Finding | None:
    """``listed``: GPUs that nvidia-smi names, of which torch sees none though nobody has hidden them."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") is not None or device.is_put_off()
    if not listed or hidden or torch.cuda.is_available():
        return None
    said = f"torch {torch.__version__} sees none of the {counted(listed, 'GPU')} that nvidia-smi lists"
    if torch.version.cuda is None:
        mend = "it is a build without CUDA; install one with it, from https://pytorch.org"
    else:
        mend = f"the driver is too old for its CUDA {torch.version.cuda}, or broken; take a newer driver or another machine"
    return Finding("torch", f"{said}: {mend}; ACCELERATE_USE_CPU=true trains on the CPU", red=True)


def kernels() -> Finding:
    """Outputs and every gradient against float64; a miscompiled kernel gives finite, plausible, wrong ones."""
    if not device.is_gpu():
        return absent("kernels")
    from hybrid_ft.kernels.gated_delta_rule.trusted import faults

    try:
        found = faults(HEADS, DIMS, torch.bfloat16, torch.device("cuda", 0))
    except RuntimeError as error:
        return Finding("kernels", f"the self-test does not run: {one_line(error, 150)}", red=True)
    if found:
        mend = f"{len(found)} in all; install another release of triton or of torch"
        return Finding("kernels", f"wrong gradients or outputs: {found[0]}; {mend}", red=True)
    return Finding("kernels", "the gated delta rule's self-test: outputs and gradients are right")


def rates() -> Finding:
    if not device.is_gpu():
        return absent("rate")
    return judged([_rate(number) for number in range(device.count())], device.name())


def judged(flops: list[float], name: str) -> Finding:
    """``flops``: operations a second of each GPU of the kind ``name``."""
    said = ", ".join(f"{one / 1e12:,.0f}" for one in flops) + " TF in bfloat16"
    stated = next((gpu.flops for gpu in read_table().values() if gpu.name.split()[0].lower() in name.lower()), None)
    if min(flops) < max(flops) * (1 - _UNEVEN):
        return Finding(
            "rate", f"{said}: GPU {flops.index(min(flops))} is slower than the others; take another machine", red=True
        )
    if stated and min(flops) < _LEAST * stated:
        return Finding(
            "rate", f"{said} of {stated / 1e12:,.0f} stated for {name}: slowed down; take another machine", red=True
        )
    return Finding("rate", said)


def _rate(number: int) -> float:
    place = torch.device("cuda", number)
    x = torch.randn(_SIDE, _SIDE, dtype=torch.bfloat16, device=place)
    torch.mm(x, x)
    torch.cuda.synchronize(place)
    began = time.perf_counter()
    for _ in range(_TIMES):
        torch.mm(x, x)
    torch.cuda.synchronize(place)
    return 2 * _SIDE**3 * _TIMES / (time.perf_counter() - began)
