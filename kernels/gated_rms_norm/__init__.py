from hybrid_ft.kernels.gated_rms_norm.op import gated_rms_norm
from hybrid_ft.kernels.gated_rms_norm.reference import gated_rms_norm_reference

__all__ = ["gated_rms_norm", "gated_rms_norm_reference"]
