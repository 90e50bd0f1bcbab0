"""What is measured: Olmo Hybrid 7B's shapes, or tiny ones for a dry run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Sizes:
    def __init__(self, dry: bool) -> None:
        self.tokens = 512 if dry else 32768
        self.H, self.K, self.V = (2, 32, 64) if dry else (30, 96, 192)
        self.width, self.hidden = (128, 256) if dry else (3840, 11008)
        self.vocabulary = 512 if dry else 100352

    def delta_rule_inputs(self, sequences: int, device: str) -> tuple[list[Tensor], Tensor, Tensor]:
        """q, k, v, g, beta as leaves, the gradient of o, cu_seqlens; on a CPU memory as it happens to be."""
        T, H, K, V = self.tokens, self.H, self.K, self.V
        shapes = [(1, T, H, K), (1, T, H, K), (1, T, H, V), (1, T, H), (1, T, H), (1, T, H, V)]
        made = [
            torch.empty(shape, dtype=torch.bfloat16 if len(shape) == 4 else torch.float32, device=device)
            for shape in shapes
        ]
        if device == "cuda":
            torch.manual_seed(0)
            for x in made:
                x.normal_()
            made[3].copy_(-0.2 * torch.rand_like(made[3]))
            made[4].copy_(2 * torch.rand_like(made[4]))
        *inputs, do = made
        edges = torch.arange(sequences + 1, dtype=torch.int32, device=device) * (T // sequences)
        return [x.requires_grad_() for x in inputs], do, edges

    def layer_kernels(self, device: str) -> list[tuple[str, list[Tensor], Callable[[], Tensor]]]:
        """Name, leaves and call of every kernel of a layer but the delta rule."""
        from hybrid_ft.kernels.delta_gates import delta_gates
        from hybrid_ft.kernels.gated_rms_norm import gated_rms_norm
        from hybrid_ft.kernels.rms_norm import rms_norm
        from hybrid_ft.kernels.short_conv import short_conv
        from hybrid_ft.kernels.swiglu import swiglu

        N, D, F, H, V = self.tokens, self.width, self.hidden, self.H, self.V

        def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            x = torch.empty(shape, dtype=dtype, device=device)
            return (x.normal_() if device == "cuda" else x).requires_grad_()

        edges = torch.arange(9, dtype=torch.int32, device=device) * (N // 8)
        x, conv = leaf(N, H * V), leaf(H * V, 4)
        row, weight = leaf(N, D), leaf(D)
        gate, up = leaf(N, F), leaf(N, F)
        o, silu, norm = leaf(N, H, V), leaf(N, H, V), leaf(V)
        a, b, A_log, bias = leaf(N, H), leaf(N, H), leaf(H, dtype=torch.float32), leaf(H, dtype=torch.float32)
        return [
            ("short_conv", [x, conv], lambda: short_conv(x, conv, cu_seqlens=edges)[0]),
            ("rms_norm", [row, weight], lambda: rms_norm(row, weight)),
            ("swiglu", [gate, up], lambda: swiglu(gate, up)),
            ("gated_rms_norm", [o, silu, norm], lambda: gated_rms_norm(o, silu, norm)),
            ("delta_gates", [a, A_log, bias], lambda: delta_gates(a, b, A_log, bias)[0]),
        ]


def tensors_of(args: tuple[Any, ...]) -> list[Tensor]:
    """Of a launch, each once."""
    found: dict[int, Tensor] = {}
    todo = list(args)
    for x in todo:
        if isinstance(x, Tensor):
            found.setdefault(x.data_ptr(), x)
        elif isinstance(x, tuple):
            todo.extend(x)
    return list(found.values())


def bytes_of(args: tuple[Any, ...]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors_of(args))
