from hybrid_ft.kernels.rms_norm.op import rms_norm
from hybrid_ft.kernels.rms_norm.reference import rms_norm_reference

__all__ = ["rms_norm", "rms_norm_reference"]
