"""Tokens by a seed."""

import torch


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(4, 80, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
