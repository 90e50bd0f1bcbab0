from hybrid_ft.kernels.swiglu.op import swiglu
from hybrid_ft.kernels.swiglu.reference import swiglu_reference

__all__ = ["swiglu", "swiglu_reference"]
