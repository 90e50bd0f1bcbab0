"""The account of a 7B step on a GPU, counted, by part.

    python benchmarks/step_account.py [--tokens 32768] [--documents 8] [--lora 32] [--checkpointing true] [--keep 8]

Milliseconds from what is dispatched: no GPU is needed and nothing is measured. A step runs on tensors without memory,
as on a GPU, with 4 and with 8 layers, of which the 32 are made up. A product takes its operations at 70 % of an H200's
790 TFLOP/s, attention its own at 370 forward and 300 backward (flash-attn 2; half of the tokens carry a label),
everything else its bytes, each tensor touched once, at 85 % of 4.3 TB/s; the delta rule the bytes of its launches
(benchmarks/gpu_check/launches.py). So every line is the least that a part takes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim import optimizer as optim
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "benchmarks" / "gpu_check"), str(ROOT / "tests" / "finetune")]

from libraries import use_this_checkout

PRODUCT, FORWARD, BACKWARD, BYTES = 0.70 * 790e9, 370e9, 300e9, 0.85 * 4.3e9  # a millisecond
FREE = {
    "t",
    "view",
    "_unsafe_view",
    "transpose",
    "detach",
    "alias",
    "expand",
    "unsqueeze",
    "squeeze",
    "split",
    "select",
}
FREE |= {"empty", "new_empty", "empty_like", "as_strided", "slice", "unbind", "permute", "split_with_sizes", "device"}
PRODUCTS = {"mm", "addmm", "addmm_", "bmm"}
SUMS, COPIES = {"add", "add_"}, {"_to_copy", "copy_", "clone", "cat", "zeros", "zero_", "fill_", "index_select"}
# Bytes of the delta rule's launches for each token and head of 96 and 192, forward and backward.
DELTA = {"gated_delta_rule": 2.07e9 / (32768 * 30), "gated_delta_rule_backward": 8.80e9 / (32768 * 30)}


class Account(TorchDispatchMode):
    """Milliseconds by part, of everything within."""

    def __init__(self) -> None:
        super().__init__()
        self.ms: Counter[str] = Counter()
        self.optimizing = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        if name not in FREE and tensors and all(x.device.type != "meta" for x in tensors):
            self._book(func.namespace, name, args, tensors)
        return out

    def _book(self, space: str, name: str, args: Any, tensors: list[torch.Tensor]) -> None:
        moved = sum(x.numel() * x.element_size() for x in tensors) / BYTES
        if self.optimizing:
            self.ms["optimizer"] += moved
        elif name in PRODUCTS:
            a, b = (x for x in args[-2:] if isinstance(x, torch.Tensor))
            self.ms["products of the layers"] += max(2 * a.numel() * b.shape[-1] / PRODUCT, moved)
        elif name.startswith("token_log_probs"):
            back = name.endswith("backward")
            hidden, weight = (x for x in args[back:][:2])
            logits = len(hidden) * len(weight)
            self.ms["head"] += (1 + 2 * back) * 2 * logits * hidden.shape[1] / PRODUCT
            self.ms["passes over logits"] += (2 + 3 * back) * logits * hidden.element_size() / BYTES
        elif "scaled_dot_product" in name:
            back = "backward" in name
            rows, heads, length, width = args[back].shape
            operations = 2 * rows * heads * length**2 * width  # of both products, of the lower half
            self.ms["attention"] += 2.5 * operations / BACKWARD if back else operations / FORWARD
        elif name in DELTA:
            o = next(x for x in tensors if x.ndim == 4 and x.shape[-1] == 192)
            self.ms["delta rule"] += DELTA[name] * o.shape[1] * o.shape[2] / BYTES
        elif space == "hybrid_ft":
            self.ms[name.removesuffix("_backward").replace("_", " ")] += moved
        else:
            self.ms["sums" if name in SUMS else "copies and casts" if name in COPIES else "the rest"] += moved


def account(options: argparse.Namespace, layers: int) -> Counter[str]:
    """Of a step with so many layers."""
    from memory_trace import trace
    from recording import pretending

    from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config

    config = preset_config("7B")
    config.num_hidden_layers, config.layer_types = layers, config.layer_types[:layers]
    counted = Account()
    began = optim.register_optimizer_step_pre_hook(lambda *_: setattr(counted, "optimizing", True))
    ended = optim.register_optimizer_step_post_hook(lambda *_: setattr(counted, "optimizing", False))

    @contextmanager
    def counting() -> Iterator[None]:
        try:
            with pretending(), counted:
                yield
        finally:
            began.remove(), ended.remove()

    how: dict[str, Any] = {"lora": options.lora} if options.lora else {"optimizer": "adamw_bf16"}
    trace(
        config,
        tokens=options.tokens,
        documents=options.documents,
        as_on_a_gpu=counting,
        checkpointing=options.checkpointing,
        left_out=frozenset(number for number in range(3, layers, 4) if number < options.keep * layers // 8),
        **how,
    )
    return Counter({name: ms / 2 for name, ms in counted.ms.items()})  # of the trace's two steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="0: all weights, by adamw_bf16")
    parser.add_argument("--checkpointing", type=json.loads, default=True, metavar='true|false|"selective"')
    parser.add_argument(
        "--keep", type=int, default=0, choices=(0, 8), help="attention layers that are not checkpointed"
    )
    parser.add_argument("--out", type=Path, help="append the account as a JSON line")
    options = parser.parse_args()
    use_this_checkout()
    four, eight = account(options, 4), account(options, 8)
    whole = Counter({name: four[name] + 7 * (eight[name] - four[name]) for name in eight})
    total = sum(whole.values())
    for name, ms in whole.most_common():
        print(f"{name:28}{ms:10,.1f} ms{ms / total:8.1%}")
    print(f"{'a step, at the least':28}{total:10,.1f} ms, {options.tokens / total * 1000:,.0f} tokens/s")
    if options.out:
        told = {name: value for name, value in vars(options).items() if name != "out"}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told | {"ms": {name: round(ms, 1) for name, ms in whole.items()}}) + "\n")


if __name__ == "__main__":
    main()
