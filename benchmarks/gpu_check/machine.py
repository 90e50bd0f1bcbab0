"""The machine and its libraries, as they are found."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata

import torch
from rows import Rows

PACKAGES = (
    "triton",
    "transformers",
    "trl",
    "datasets",
    "peft",
    "pydantic",
    "huggingface_hub",
    "tokenizers",
    "fla-core",
    "einops",
)


def describe(rows: Rows, dry: bool) -> None:
    rows.add("python", platform.python_version(), note=f"{os.cpu_count()} cores")
    rows.add("torch", torch.__version__)
    for name in PACKAGES:
        try:
            rows.add(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            rows.add(name, failed="not installed")
    if dry:
        rows.add("GPU", "none: a dry run on the CPU, whose numbers mean nothing")
        return
    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,clocks.max.sm,clocks.mem,memory.total",
        "--format=csv,noheader",
    ]
    with rows.attempt("nvidia-smi"):
        rows.add("nvidia-smi", subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())
    properties = torch.cuda.get_device_properties(0)
    rows.add("GPU", properties.name, note=f"{properties.multi_processor_count} multiprocessors")
    x = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    from timing import milliseconds

    rows.add("copy, bytes read and written", 2 * x.numel() / milliseconds(lambda: y.copy_(x), 5) / 1e9, "TB/s")
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    rows.add("8192^3 bf16 product", 2 * 8192**3 / milliseconds(lambda: a @ b, 10) / 1e9, "TFLOP/s")
