from hybrid_ft.kernels.delta_gates.op import delta_gates
from hybrid_ft.kernels.delta_gates.reference import delta_gates_reference

__all__ = ["delta_gates", "delta_gates_reference"]
