from hybrid_ft.kernels.selective_scan.op import selective_scan
from hybrid_ft.kernels.selective_scan.reference import selective_scan_reference

__all__ = ["selective_scan", "selective_scan_reference"]
