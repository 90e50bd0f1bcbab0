"""Decay and writing strength of the delta rule, on the tensors' device."""

from torch import Tensor

from hybrid_ft.kernels.delta_gates.reference import delta_gates_reference
from hybrid_ft.kernels.gated_delta_rule.checks import check_floats


def delta_gates(
    a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor, *, allow_neg_eigval: bool = True
) -> tuple[Tensor, Tensor]:
    """
    a and b of one shape [..., HV]; A_log and dt_bias [HV]. Returns g [..., HV], the logarithm of the decay, in float32
    (float64 where a or dt_bias is), and beta [..., HV] in b's dtype, up to 2 with ``allow_neg_eigval``, else up to 1.
    Differentiable in all four. See reference.py for the equations, which are all there is to it on a CPU.
    The tensors' device alone decides the path: on a GPU Triton kernels for 32 and 16 bits, one launch for both
    results, and backward keeps nothing but the arguments.
    Raises ValueError, one line, for shapes or dtypes that do not fit.
    """
    check_gates(a, b, A_log, dt_bias)
    if a.is_cuda:
        # Triton is there wherever torch supports CUDA, and nowhere else.
        from hybrid_ft.kernels.delta_gates.gpu.launch import triton_delta_gates

        return triton_delta_gates(a, b, A_log, dt_bias, allow_neg_eigval)
    return delta_gates_reference(a, b, A_log, dt_bias, allow_neg_eigval)


def check_gates(a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor) -> None:
    check_floats(a=a, b=b, A_log=A_log, dt_bias=dt_bias)
    if a.ndim < 1:
        raise ValueError("a: got no dimension; it must have at least one, [..., HV]")
    if b.shape != a.shape:
        raise ValueError(f"b: got shape {tuple(b.shape)}; it must be a's, {tuple(a.shape)}")
    for name, x in (("A_log", A_log), ("dt_bias", dt_bias)):
        if x.shape != a.shape[-1:]:
            raise ValueError(f"{name}: got shape {tuple(x.shape)}; it must be a's last size, {tuple(a.shape[-1:])}")
