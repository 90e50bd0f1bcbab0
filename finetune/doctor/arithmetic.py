"""What the GPUs compute: versions, the kernels' self-test, rate and evenness."""

from __future__ import annotations

import importlib.metadata
import os
import re
import time
from collections.abc import Callable, Iterator

import torch

from hybrid_ft.errors import one_line
from hybrid_ft.finetune.data.report.account import counted
from hybrid_ft.finetune.doctor.finding import Finding, absent
from hybrid_ft.finetune.machines.gpus import Gpu, read_table
from hybrid_ft.finetune.runs import device

HEADS, DIMS = (30, 30), (96, 192)
"""of Olmo Hybrid 7B: what is asked where no recipe is given"""
_SIDE, _TIMES = 8192, 10
_COPIED = 2**29
"""bytes, of which no cache of a GPU holds more than a quarter"""
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
    if not listed or hidden or device.is_gpu():
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


def rates() -> Iterator[Finding]:
    """Of products, and of the GPU's memory, which recurrent layers, norms and the optimizer wait for."""
    if not device.is_gpu():
        yield absent("rate")
        yield absent("copies")
        return
    gpus, name = range(device.count()), device.name()
    yield judged("rate", [_multiplied(number) for number in gpus], name)
    yield judged("copies", [_copied(number) for number in gpus], name)


def judged(check: str, measured: list[float], name: str) -> Finding:
    """``measured``: of each GPU of the kind ``name`` operations (``rate``) or bytes (``copies``) a second."""
    gpu, products = _kind(name), check == "rate"
    stated = gpu and (gpu.flops if products else gpu.bandwidth)
    digits, unit = (0, "TF in bfloat16") if products else (2, "TB/s to and from memory")
    said = f"{', '.join(f'{one / 1e12:,.{digits}f}' for one in measured)} {unit}"
    if min(measured) < max(measured) * (1 - _UNEVEN):
        slow = measured.index(min(measured))
        return Finding(check, f"{said}: GPU {slow} is slower than the others; take another machine", red=True)
    if stated and min(measured) < _LEAST * stated:
        of = f"{stated / 1e12:,.{digits}f}"
        return Finding(check, f"{said} of {of} stated for {name}: slowed down; take another machine", red=True)
    return Finding(check, said)


def _kind(name: str) -> Gpu | None:
    """The table's, by every word of its key; boards for PCIe have other figures than those of a kind's name."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    if "pcie" in words:
        return None
    return next((gpu for key, gpu in read_table().items() if set(key.split("-")) <= set(words)), None)


def _multiplied(number: int) -> float:
    x = torch.randn(_SIDE, _SIDE, dtype=torch.bfloat16, device=torch.device("cuda", number))
    return 2 * _SIDE**3 / _seconds(lambda: torch.mm(x, x), x.device)


def _copied(number: int) -> float:
    x = torch.zeros(_COPIED, dtype=torch.uint8, device=torch.device("cuda", number))
    other = torch.empty_like(x)
    return 2 * _COPIED / _seconds(lambda: other.copy_(x), x.device)


def _seconds(work: Callable[[], object], place: torch.device) -> float:
    """Of one, after a first that is not counted."""
    work()
    torch.cuda.synchronize(place)
    began = time.perf_counter()
    for _ in range(_TIMES):
        work()
    torch.cuda.synchronize(place)
    return (time.perf_counter() - began) / _TIMES
