from hybrid_ft.kernels.rms_norm.op import add_rms_norm, rms_norm
from hybrid_ft.kernels.rms_norm.reference import add_rms_norm_reference, rms_norm_reference

__all__ = ["add_rms_norm", "add_rms_norm_reference", "rms_norm", "rms_norm_reference"]
