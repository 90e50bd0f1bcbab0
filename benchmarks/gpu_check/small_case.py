"""The delta rule on segments of 0, 1 and 129 tokens, for a sanitizer."""

import sys

import torch
from libraries import use_this_checkout

use_this_checkout()

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule
from hybrid_ft.kernels.gated_delta_rule.self_test import case, results

device = "cpu" if "--dry" in sys.argv else "cuda"
found = results(
    gated_delta_rule, *case([0, 0, 1, 130], (2, 2), (96, 192), dtype=torch.bfloat16), torch.bfloat16, device
)
print("finite:", all(bool(x.isfinite().all()) for x in found))
