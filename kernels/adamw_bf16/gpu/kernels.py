"""One step of AdamW as one Triton kernel.

16 bytes for each number, 9 read and 7 written, each once. The random bits are made on the
way (Philox, of a seed and the number's place), so that none go through memory."""

import triton
import triton.language as tl

from hybrid_ft.kernels.adamw_bf16.reference import LOW

DROPPED = tl.constexpr(LOW)


@triton.jit
def random_bits(seed, place):
    """int32, of which at least the lower 24 bits are random."""
    return tl.randint(seed, place).to(tl.int32, bitcast=True)


@triton.jit
def _rounded(x, noise):
    """A bfloat16's pattern from float32, up or down by 16 random bits."""
    return ((x.to(tl.int32, bitcast=True) + (noise & 65535)) >> 16).to(tl.int16)


@triton.jit
def _wide(x):
    """The float32 of a bfloat16's pattern, int16."""
    return (x.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["N", "seed"])
def update_kernel(
    weight, low, gradient, first, second, N, seed, kept, new1, beta2, new2, rate, correction, eps, BLOCK: tl.constexpr
):  # fmt: skip
    """In place; weight, gradient, first and second are the int16 patterns of bfloat16 [N], low int8 [N]. new1, new2: 1
    less the betas, which a difference of float32 would not be."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = place < N
    high = tl.load(weight + place, mask=here, other=0).to(tl.int32)
    rest = tl.load(low + place, mask=here, other=0).to(tl.int32)
    g = _wide(tl.load(gradient + place, mask=here, other=0))
    m = _wide(tl.load(first + place, mask=here, other=0))
    v = _wide(tl.load(second + place, mask=here, other=0))
    w = ((high << 16) + (rest << DROPPED)).to(tl.float32, bitcast=True)
    m += new1 * (g - m)
    v = v * beta2 + new2 * (g * g)
    w = w * kept - rate * tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), correction) + eps)
    noise = random_bits(seed, place)
    bits = ((w.to(tl.int32, bitcast=True) + (noise & 255)) >> DROPPED) << DROPPED
    high = (bits + 32768) >> 16
    tl.store(weight + place, high.to(tl.int16), mask=here)
    tl.store(low + place, ((bits - (high << 16)) >> DROPPED).to(tl.int8), mask=here)
    noise >>= DROPPED
    tl.store(first + place, _rounded(m, noise), mask=here)
    tl.store(second + place, _rounded(v, noise), mask=here)
