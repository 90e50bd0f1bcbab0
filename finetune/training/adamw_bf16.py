"""AdamW on bfloat16 weights with 8 more bits of each, rounded at random.

Weight and moments take 7 bytes, its gradient 2. An update of 2.5e-5 to a weight of 0.02 is lost in bfloat16's 8 bits,
and one that is rounded at random there adds noise of the weight's own size within thousands of steps. With 8 bits more
it does not (2010.06192 keeps 16, by Kahan's sum). The weight itself is always the bfloat16 nearest to what is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hybrid_ft.kernels.adamw_bf16.reference import Rates, stepped, update

CHUNK = 2**22
"""numbers worked on at a time on a CPU: temporaries are some 30 bytes for each"""


class AdamWBF16(torch.optim.Optimizer):
    """torch's AdamW, computed in float32 from numbers that are kept in fewer bits.

    Of a bfloat16 parameter: ``exp_avg`` and ``exp_avg_sq`` bfloat16, ``low`` int8, the bits below the weight's own.
    Others, such as float32 decay rates, keep their moments in their own dtype. The random bits are a function of
    ``seed``, a parameter's number and its step: a run that goes on draws the same, and so do copies in other processes;
    each piece of a divided one (FSDP2) draws its own. They are the device's own, not the same on a CPU as on a GPU.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.seed = seed

    @staticmethod
    def state_names(parameter: Tensor) -> tuple[str, ...]:
        """Of the tensors that are kept of it."""
        return ("exp_avg", "exp_avg_sq", *(("low",) if parameter.dtype == torch.bfloat16 else ()), "step")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    for name in self.state_names(parameter)[:-1]:
                        dtype = torch.int8 if name == "low" else parameter.dtype
                        state[name] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.contiguous_format)
                steps = int(state["step"]) + 1
                state["step"] = torch.tensor(float(steps))  # as torch's own keeps it
                pieces = {name: _local(value) for name, value in state.items() if name != "step"}
                seed = _seed(self.seed, number, steps, *_piece(parameter))
                _update(_local(parameter), _local(parameter.grad), pieces, group, steps, seed)


def _seed(*numbers: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little") >> 1


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _piece(parameter: Tensor) -> list[int]:
    """Which piece of the parameter this process has: a number where it is divided."""
    if not isinstance(parameter, DTensor):
        return []
    coordinate = parameter.device_mesh.get_coordinate()
    assert coordinate is not None
    return [coordinate[n] for n, placement in enumerate(parameter.placements) if placement.is_shard()]


def _update(
    parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], steps: int, seed: int
) -> None:
    if not parameter.numel():  # of more pieces than rows some are empty
        return
    beta1, beta2 = group["betas"]
    rate, correction = group["lr"] / (1 - beta1**steps), (1 - beta2**steps) ** 0.5
    rates = Rates(1 - group["lr"] * group["weight_decay"], beta1, beta2, rate, correction, group["eps"])
    assert parameter.is_contiguous()
    flat = [one.reshape(-1) for one in (parameter, gradient, state["exp_avg"], state["exp_avg_sq"])]
    low = state["low"].view(-1) if "low" in state else None
    if parameter.is_cuda and low is not None:
        # Triton is there wherever torch supports CUDA, and nowhere else.
        from hybrid_ft.kernels.adamw_bf16.gpu.launch import triton_update

        weight, gradient, first, second = flat
        triton_update(weight, low, gradient, first, second, seed, rates)
        return
    generator = torch.Generator(parameter.device)
    generator.manual_seed(seed)
    for start in range(0, parameter.numel(), CHUNK):
        weight, gradient, first, second = (one[start : start + CHUNK] for one in flat)
        if low is not None:
            random = torch.empty(weight.shape, dtype=torch.int32, device=weight.device).random_(generator=generator)
            update(weight, low[start : start + CHUNK], gradient, first, second, random, rates)
            continue
        wide, mean, square = stepped(weight.float(), gradient.float(), first, second, rates)
        first.copy_(mean)
        second.copy_(square)
        weight.copy_(wide)
