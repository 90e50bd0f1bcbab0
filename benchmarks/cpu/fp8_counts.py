"""What torchao's fp8 products would cost and save, counted.

    python benchmarks/cpu/fp8_counts.py [--tokens 32768]

For each projection of the 7B, forward and backward: the milliseconds that products in fp8 save of an H200's bf16 (70 %
of 790 TFLOP/s, at 1.5 and at 2 times the rate), and the bytes that torchao moves to convert their operands, by what it
dispatches without a compiler, at 85 % of 4.3 TB/s; and how far the result is from float64 beside bf16's. No GPU is
needed and nothing is timed. Needs torchao.
"""

from __future__ import annotations

import argparse

import common
import torch
from torchao.float8 import Float8LinearConfig
from torchao.float8.float8_linear import Float8Linear

PRODUCT, BYTES = 0.70 * 790e9, 0.85 * 4.3e9  # a millisecond
FREE = {"_scaled_mm", "mm", "t", "view", "_unsafe_view", "transpose", "detach", "alias", "expand", "reciprocal", "ones"}
SHAPES = {
    "q, k": (3840, 2880),
    "v, g": (3840, 5760),
    "o": (5760, 3840),
    "gate, up": (3840, 11008),
    "down": (11008, 3840),
}
TOKENS = 2048  # that are computed; what is moved grows with the tokens beside a share of the weight's own


def moved(width: int, outputs: int, tokens: int, config: Float8LinearConfig) -> int:
    layer = Float8Linear.from_float(torch.nn.Linear(width, outputs, bias=False).bfloat16(), config)
    x = torch.randn(tokens, width, dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(tokens, outputs, dtype=torch.bfloat16)
    with common.Moved(FREE) as found:
        layer(x).backward(dy)
    return found.bytes


def apart(config: Float8LinearConfig) -> tuple[float, float]:
    """Relative L2 error of a product's result in fp8 and in bf16, against float64."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(3840, 2880, bias=False).bfloat16()
    x = torch.randn(512, 3840).bfloat16()
    exact = x.double() @ plain.weight.double().T
    with torch.no_grad():
        results = Float8Linear.from_float(plain, config)(x), plain(x)
    return tuple(float((y.double() - exact).norm() / exact.norm()) for y in results)  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32768)
    options = parser.parse_args()
    for name in ("tensorwise", "rowwise"):
        config = Float8LinearConfig.from_recipe_name(name)
        fp8, bf16 = apart(config)
        print(f"{name}: off by {fp8:.1e}, bfloat16 by {bf16:.1e}")
        for label, (width, outputs) in SHAPES.items():
            one, two = (moved(width, outputs, tokens, config) for tokens in (TOKENS // 2, TOKENS))
            whole = two + (two - one) * (options.tokens - TOKENS) / (TOKENS // 2)
            product = 6 * options.tokens * width * outputs / PRODUCT
            print(
                f"  {label:10} products in bfloat16 {product:5.1f} ms, fp8 saves {product / 3:4.1f} to {product / 2:4.1f}, "
                f"conversions take {whole / BYTES:4.1f} ({whole / 1e9:.1f} GB)"
            )


if __name__ == "__main__":
    main()
