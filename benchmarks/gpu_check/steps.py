"""Steps of the GPU check in order, with their time limits in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

CUDA_PTXAS = Path("/usr/local/cuda/bin/ptxas")


@dataclass(frozen=True)
class Step:
    """``function(rows, dry)`` of a module of this folder.

    ptxas   kernels are assembled by CUDA's own, not by Triton's
    rivals  flash-linear-attention is there
    """

    part: int
    name: str
    module: str
    function: str
    limit: float
    ptxas: bool = False
    rivals: bool = False
    variables: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        # TRITON_PTXAS_PATH is what Triton reads on every GPU before Blackwell
        return self.variables | ({"TRITON_PTXAS_PATH": str(CUDA_PTXAS)} if self.ptxas and CUDA_PTXAS.exists() else {})


STEPS = (
    Step(1, "machine", "machine", "describe", 30),
    Step(1, "compile", "prebuild", "for_part_1", 120),
    Step(1, "self-test", "correctness", "self_test", 60),
    Step(1, "launches", "launches", "delta_rule", 60),
    Step(1, "same bits", "correctness", "same_bits", 30),
    Step(1, "isolation", "correctness", "isolation", 45),
    Step(1, "commands", "commands", "train", 110),
    Step(1, "self-test by CUDA's ptxas", "correctness", "self_test_assembled_anew", 60, ptxas=True),
    Step(1, "layer kernels", "launches", "layer_kernels", 45),
    Step(1, "quick tests", "commands", "quick_tests", 100),
    # each allocation by itself, so that an access past one is seen
    Step(1, "memcheck", "commands", "memcheck", 60, variables={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}),
    Step(2, "machine", "machine", "describe", 30, rivals=True),
    Step(2, "compile", "prebuild", "for_part_2", 120, rivals=True),
    Step(2, "op", "rivals", "op", 70, rivals=True),
    Step(2, "layer", "rivals", "layer", 50, rivals=True),
    Step(2, "model", "rivals", "model", 170, rivals=True),
    Step(2, "attention", "rivals", "attention", 40, rivals=True),
)
