from hybrid_ft.kernels.delta_step.op import delta_step
from hybrid_ft.kernels.delta_step.reference import delta_step_reference

__all__ = ["delta_step", "delta_step_reference"]
