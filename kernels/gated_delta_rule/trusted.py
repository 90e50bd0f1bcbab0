"""The self-test of a GPU, once for each GPU, Triton and torch.

A miscompiled kernel gives finite, plausible, wrong gradients, and the versions that do so are known only afterwards.
The test has the heads, head sizes and dtype that will be trained, so that what it compiles is not compiled again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.op import gated_delta_rule
from hybrid_ft.kernels.gated_delta_rule.reference import gated_delta_rule_reference
from hybrid_ft.kernels.gated_delta_rule.self_test import MAMBA2, NAMES, allowed, case, error, results

# segments and gates: an empty one, one of one token, a chunk's edge; decays that differ by twenty powers of e
CASES = [([0, 0, 1, 130], "typical"), ([0, 200], "some closed")]
# where the heads of each result lie
HEADS = {name: 2 for name in NAMES} | {"final_state": 1, "d_initial_state": 1}


def faults(
    heads: tuple[int, int],
    dims: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    folder: Path | None = None,
    mamba2: bool = False,
) -> list[str]:
    """What is wrong on this GPU, line by line; nothing if all is right.

    heads, dims  H and HV, K and V, as they will be trained
    folder       where the answer is kept, by default ~/.cache/hybrid-ft; where it cannot be written the test is run
                 each time
    mamba2       the rule without its correction and norms, as Mamba-2 calls it
    """
    kind = f"{fingerprint(heads, dims, dtype, device)}{'-mamba2' if mamba2 else ''}"
    file = (folder or default_folder()) / f"{kind}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = list(compared(heads, dims, dtype, device, mamba2=mamba2))
    _keep(file, found)
    return found


def default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybrid-ft" / "self-test"


def fingerprint(heads: tuple[int, int], dims: tuple[int, int], dtype: torch.dtype, device: torch.device) -> str:
    """Of all that decides what is compiled and what runs it: the GPU, the libraries, the
    assembler, the kernels' code."""
    import triton

    properties = torch.cuda.get_device_properties(device)
    told = [properties.name, properties.major, properties.minor, torch.__version__, triton.__version__]
    told += [os.environ.get("TRITON_PTXAS_PATH"), heads, dims, str(dtype)]
    digest = hashlib.sha256(json.dumps(told).encode())
    for source in sorted((Path(__file__).parent / "gpu").glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def _keep(file: Path, found: list[str]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as out:
            json.dump(found, out)
        os.replace(out.name, file)
    except OSError:
        return


def compared(
    heads: tuple[int, int],
    dims: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    rule: Callable[..., tuple[Tensor, Tensor | None]] = gated_delta_rule,
    mamba2: bool = False,
) -> Iterator[str]:
    """Every head is given the same numbers, so that one of them need be computed in float64."""
    H, HV = heads
    options: dict[str, Any] = MAMBA2 if mamba2 else {}
    for edges, gate in CASES:
        leaves, up, cu_seqlens = case(edges, (1, 1), dims, gate, dtype)
        true = results(gated_delta_rule_reference, leaves, up, cu_seqlens, **options)
        limits = allowed(leaves, up, cu_seqlens, true, dtype, **options)
        q, k, *of_values = leaves
        many = [x.repeat_interleave(H, 2) for x in (q, k)]
        many += [x.repeat_interleave(HV, 1 if x is leaves[5] else 2) for x in of_values]
        ups = [up[0].repeat_interleave(HV, 2), up[1].repeat_interleave(HV, 1)]
        got, again = (results(rule, many, ups, cu_seqlens, dtype, str(device), **options) for _ in range(2))
        where = f"{str(dtype).removeprefix('torch.')}, heads of {dims[0]} and {dims[1]}, gates {gate}"
        for name, x, y, t, limit in zip(NAMES, got, again, true, limits):
            if not torch.equal(x, y):
                yield f"{where}: {name} differs from one run to the next"
            t = t * (HV // H if name in ("dq", "dk") else 1)  # a key head has the gradients of all that it serves
            worst = max(error(head, t.select(HEADS[name], 0)) for head in x.unbind(HEADS[name]))
            if not worst <= limit:
                yield f"{where}: {name} is off by {worst:.1e}, more than {limit:.1e}"
