from hybrid_ft.kernels.gated_delta_rule.cpu.decode import gated_delta_rule_step
from hybrid_ft.kernels.gated_delta_rule.op import gated_delta_rule
from hybrid_ft.kernels.gated_delta_rule.reference import gated_delta_rule_reference

__all__ = ["gated_delta_rule", "gated_delta_rule_reference", "gated_delta_rule_step"]
