from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    scan_block: int = 64
    intra_warps: int = 4
    forward_warps: int = 4
    forward_stages: int = 2
    backward_warps: int = 8
    backward_stages: int = 2
    gradients_warps: int = 8
    gradients_stages: int = 2
    gradients_block: int = 64
    apart: bool = False


def settings_for(q, k):
    return Settings()
