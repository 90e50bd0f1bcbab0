"""The other side: flash-linear-attention's op, and transformers' own Olmo Hybrid on the same weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Rule = Callable[..., tuple[Tensor, Tensor | None]]


def lift_guard() -> None:
    """Let fla's backward run on Hopper with Triton 3.4 to 3.7.0, where it refuses because its gradients are wrong there
    (flash-linear-attention issue 640): its time is wanted, and its error is printed beside it."""
    try:
        chunk_o = importlib.import_module("fla.ops.common.chunk_o")
    except Exception:  # noqa: BLE001
        return
    if hasattr(chunk_o, "TRITON_ABOVE_3_7_1"):
        chunk_o.TRITON_ABOVE_3_7_1 = True


def delta_rule() -> Rule:
    """fla's, with this project's signature. Raises ModuleNotFoundError where it is not installed."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    lift_guard()

    def rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
        return chunk_gated_delta_rule(q, k, v, g, beta, use_qk_l2norm_in_kernel=True, **options)

    return rule


def path_of(layer: Any) -> str:
    """Which delta rule transformers has chosen for a layer of its own."""
    from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

    chosen = [getattr(layer, "chunk_gated_delta_rule", None), getattr(hf, "torch_chunk_gated_delta_rule", None)]
    return "transformers with fla" if any(_from_fla(f) for f in chosen) else "transformers with its torch fallback"


def _from_fla(function: Any, depth: int = 4) -> bool:
    """Whether a function is fla's or wraps one: newer transformers choose inside a decorator."""
    if not callable(function) or depth == 0:
        return False
    if (getattr(function, "__module__", None) or "").split(".")[0] == "fla":
        return True
    return any(_from_fla(cell.cell_contents, depth - 1) for cell in getattr(function, "__closure__", None) or ())


def layer_like(ours: Any, config: Any) -> Any:
    """transformers' delta layer with the very parameters of ours."""
    from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

    lift_guard()
    with torch.device("meta"):
        theirs = hf.OlmoHybridGatedDeltaNet(config, 0)
    theirs.load_state_dict(ours.state_dict(keep_vars=True), assign=True)
    return theirs


def model_like(ours: Any) -> Any:
    """transformers' model with the very parameters of ours, so that two 7B models need the memory of one."""
    from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

    lift_guard()
    with torch.device("meta"):
        theirs = hf.OlmoHybridForCausalLM(ours.config)
    theirs.load_state_dict(ours.state_dict(keep_vars=True), assign=True)
    theirs.generation_config = ours.generation_config
    return theirs.train(ours.training)
