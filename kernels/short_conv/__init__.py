from hybrid_ft.kernels.short_conv.op import short_conv, short_conv_step
from hybrid_ft.kernels.short_conv.reference import short_conv_reference

__all__ = ["short_conv", "short_conv_reference", "short_conv_step"]
