"""One pass over a chunk's logits: results, and the gradient in place."""

import triton
import triton.language as tl


@triton.jit
def forward_kernel(logits, targets, target_logits, highest, total, moment, V, BV: tl.constexpr):
    """Of each row z [V] the maximum m, sum exp(z - m), sum exp(z - m) (z - m) and the target's logit, all float32."""
    n = tl.program_id(0).to(tl.int64)
    o_v = tl.arange(0, BV)
    m = tl.full([], -float("inf"), tl.float32)
    # a sum for each lane, so that a block costs one reduction, the maximum's
    s = tl.zeros([BV], tl.float32)
    x = tl.zeros([BV], tl.float32)
    for start in range(0, V, BV):
        there = start + o_v < V
        z = tl.load(logits + n * V + start + o_v, mask=there, other=-float("inf")).to(tl.float32)
        new = tl.maximum(m, tl.max(z, 0))
        # what was summed against the old maximum, against the new one; nothing in the first block, where m is -inf
        shift = tl.where(m == -float("inf"), 0.0, m - new)
        shrink = tl.exp(shift)
        z = tl.where(there, z - new, 0.0)
        e = tl.where(there, tl.exp(z), 0.0)
        x = (x + s * shift) * shrink + e * z
        s = s * shrink + e
        m = new
    target = tl.load(targets + n)
    # a target outside the vocabulary has no address in the row: its result is not a number
    inside = (target >= 0) & (target < V)
    z = tl.load(logits + n * V + target, mask=inside, other=float("nan")).to(tl.float32)
    tl.store(target_logits + n, z)
    tl.store(highest + n, m)
    tl.store(total + n, tl.sum(s, 0))
    tl.store(moment + n, tl.sum(x, 0))


@triton.jit
def backward_kernel(logits, targets, dlp, highest, total, V, BV: tl.constexpr):
    """logits [rows, V] become their gradient, dlp (1[v = target] - exp(z - m) / total). A program is a
    block of a row."""
    blocks = tl.cdiv(V, BV)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    o_v = (tl.program_id(0) % blocks) * BV + tl.arange(0, BV)
    there = o_v < V
    z = tl.load(logits + n * V + o_v, mask=there, other=-float("inf")).to(tl.float32)
    p = tl.exp(z - tl.load(highest + n)) / tl.load(total + n)
    change = tl.load(dlp + n) * (tl.where(o_v == tl.load(targets + n), 1.0, 0.0) - p)
    tl.store(logits + n * V + o_v, change.to(logits.dtype.element_ty), mask=there)
