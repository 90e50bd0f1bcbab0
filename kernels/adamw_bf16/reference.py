"""AdamW on numbers of bfloat16 and 8 more bits.

    w  = w (1 - lr decay)
    m  = m + (1 - beta1) (g - m)               v = beta2 v + (1 - beta2) g^2
    w  = w - rate m / (sqrt(v) / correction + eps)

with rate = lr / (1 - beta1^t) and correction = sqrt(1 - beta2^t). The weight itself is always the bfloat16 nearest to
what is kept. All of them are rounded at random, m and v to bfloat16."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LOW = 8
"""bits of the float32 pattern that are dropped; 8 above them are kept beside bfloat16's 16"""


class Rates(NamedTuple):
    """Of one step, see the equations."""

    kept: float
    """1 - lr decay"""
    beta1: float
    beta2: float
    rate: float
    correction: float
    eps: float


def stepped(
    wide: Tensor, gradient: Tensor, first: Tensor, second: Tensor, rates: Rates
) -> tuple[Tensor, Tensor, Tensor]:
    """The new w (in ``wide``'s memory), m and v, all float32 [N]."""
    mean = first.float().lerp_(gradient, 1 - rates.beta1)
    square = second.float().mul_(rates.beta2).addcmul_(gradient, gradient, value=1 - rates.beta2)
    wide.mul_(rates.kept)
    wide.addcdiv_(mean, square.sqrt().div_(rates.correction).add_(rates.eps), value=-rates.rate)
    return wide, mean, square


def update(
    weight: Tensor, low: Tensor, gradient: Tensor, first: Tensor, second: Tensor, random: Tensor, rates: Rates
) -> None:
    """In place, of bfloat16 weight, m and v and int8 ``low`` [N]; ``random`` int32 [N], of which it uses 24 bits."""
    wide, mean, square = stepped(joined(weight, low), gradient.float(), first, second, rates)
    split(wide, random, weight, low)
    random = random >> LOW
    first.copy_(rounded(mean, random))
    second.copy_(rounded(square, random))


def joined(weight: Tensor, low: Tensor) -> Tensor:
    """The float32 that ``split`` has kept in a bfloat16 and 8 more bits."""
    bits = weight.view(torch.int16).to(torch.int32) << 16
    return bits.add_(low.to(torch.int32) << LOW).view(torch.float32)


def split(wide: Tensor, random: Tensor, weight: Tensor, low: Tensor) -> None:
    """Keep float32 in ``weight``, the nearest bfloat16, and ``low``, what is missing to it in 8 bits [int8].

    Rounded to 24 bits by the lowest 8 of ``random`` [int32], so that the expectation is ``wide``.
    """
    bits = wide.view(torch.int32) + (random & (2**LOW - 1))
    bits >>= LOW
    bits <<= LOW
    high = (bits + 2**15) >> 16
    low.copy_((bits - (high << 16)) >> LOW)
    weight.copy_(high.to(torch.int16).view(torch.bfloat16))


def rounded(wide: Tensor, random: Tensor) -> Tensor:
    """float32 that bfloat16 holds, up or down by the lowest 16 bits of ``random`` [int32]: the expectation is
    ``wide``."""
    bits = wide.view(torch.int32) + (random & (2**16 - 1))
    return ((bits >> 16) << 16).view(torch.float32)
