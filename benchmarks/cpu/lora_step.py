"""A LoRA step on a CPU: one product for adapters, and PEFT's forward.

    python benchmarks/cpu/lora_step.py [--model tiny] [--tokens 2048] [--rank 32]

Both sides are one model's weights, Olmo Hybrid's shape with all linear layers adapted, and one row; forward and
backward, CPU seconds on one thread, taken in turns, in float32 and under bfloat16 autocast over a bfloat16 base.
Nothing is printed if losses or gradients disagree. Then, for one adapted layer, the bytes that all operations but
matrix products read and write, by what is dispatched: what a GPU has to move besides its products.
"""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from functools import partial
from typing import Any

import common
import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import Linear, LoraLayer

import hybrid_ft
from hybrid_ft.hybrid_model.adapters import add_lora

FREE = ("mm", "t", "view", "_unsafe_view", "transpose", "detach", "alias", "expand", "unsqueeze")
"""What moves nothing, and products, whose traffic is the same on both sides but for what an addmm adds."""


def models(options: Any, dtype: torch.dtype) -> dict[str, PeftModel]:
    """The same weights twice."""
    made = {}
    for name in ("peft", "added"):
        model = add_lora(
            hybrid_ft.load(options.model, from_scratch=True, vocab_size=512, seed=0, dtype=dtype), rank=options.rank
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.normal_(std=0.02, generator=generator)
        if name == "peft":
            for module in model.modules():
                if isinstance(module, LoraLayer):
                    module.__class__ = Linear
        made[name] = model.train()
    return made


def arithmetic(model: PeftModel, dtype: torch.dtype) -> Any:
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast("cpu", dtype, cache_enabled=False)


def step(model: PeftModel, dtype: torch.dtype, ids: torch.Tensor) -> float:
    model.zero_grad(set_to_none=True)
    with arithmetic(model, dtype), disable_input_dtype_casting(model, active=dtype != torch.float32):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    return float(loss.detach())


def gradient(model: PeftModel) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def moved(model: PeftModel, tokens: int) -> float:
    """Bytes for each number of an adapted layer's output, forward and backward, the input's gradient included."""
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    x = torch.randn(1, tokens, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
    with arithmetic(model, torch.bfloat16), disable_input_dtype_casting(model), common.Moved(FREE) as count:
        layer(x).sum().backward()
    return count.bytes / (tokens * layer.out_features)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--model", default="tiny", help="shape: tiny, 190M, 1B")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    common.one_quiet_thread()
    ids = torch.randint(4, 512, (1, options.tokens), generator=torch.Generator().manual_seed(0))
    record: dict[str, Any] = {"model": options.model, "tokens": options.tokens, "rank": options.rank}
    for dtype, apart in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        both = models(options, dtype)
        losses = [step(model, dtype, ids) for model in both.values()]
        peft, added = (gradient(model) for model in both.values())
        if not math.isclose(*losses, rel_tol=apart) or (peft - added).norm() > apart * peft.norm():
            sys.exit(f"the sides disagree: losses {losses}, gradients {(peft - added).norm() / peft.norm():.3g}")
        sides = {name: partial(step, model, dtype, ids) for name, model in both.items()}
        taken = common.in_turns(sides, options.repeats)
        name = str(dtype).removeprefix("torch.")
        found = common.ratios(taken["peft"], taken["added"])
        print(
            f"{name:9} {common.spread(found)} times PEFT's steps per CPU second ({common.spread(taken['added'].cpu)} s)"
        )
        record[name] = {side: times.cpu for side, times in taken.items()}
        if dtype == torch.bfloat16:
            record["moved"] = {side: moved(model, options.tokens) for side, model in both.items()}
            print("bytes moved besides products, a number of an adapted layer's output, forward and backward:")
            print("          " + ", ".join(f"{side} {value:.1f}" for side, value in record["moved"].items()))
    common.append(options.out, record | {"processor": common.processor(), **common.versions()})


if __name__ == "__main__":
    main()
