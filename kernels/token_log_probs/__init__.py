from hybrid_ft.kernels.token_log_probs.op import token_log_probs
from hybrid_ft.kernels.token_log_probs.reference import token_log_probs_reference

__all__ = ["token_log_probs", "token_log_probs_reference"]
