"""The short convolution by its definition, W taps per channel.

Every channel has its own filter of W taps; taps do not cross segments.

    pre[n, d] = bias[d] + sum_w weight[d, w] * x[n - (W - 1) + w, d]        y = pre * sigmoid(pre), or pre alone

where rows before a segment's first come from its tail, oldest first.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def short_conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    initial_tail: Tensor | None = None,
    output_final_tail: bool = False,
    activate: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """``short_conv`` one segment at a time, in x's dtype; the gradients are autograd's."""
    width = weight.shape[1]
    edges = [0, len(x)] if cu_seqlens is None else cu_seqlens.tolist()
    outputs, tails = [x[:0]], []
    for segment, (start, end) in enumerate(pairwise(edges)):
        tail = x.new_zeros(width - 1, x.shape[1]) if initial_tail is None else initial_tail[segment].to(x.dtype)
        history = torch.cat([tail, x[start:end]])
        if end > start:
            pre = (history.unfold(0, width, 1) * weight).sum(-1)
            pre = pre if bias is None else pre + bias
            outputs.append(F.silu(pre) if activate else pre)
        tails.append(history[len(history) - (width - 1) :])
    return torch.cat(outputs), torch.stack(tails) if output_final_tail else None
