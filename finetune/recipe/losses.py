"""TRL's preference losses, one row each: what a run must know of them.

Written with the log-ratios of policy and reference, r = log pi(y|x) - log pi_ref(y|x), of the chosen and the rejected
answer; delta = r_chosen - r_rejected. The formulas are in TRL's ``DPOTrainer._compute_loss``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

DEFAULT = "sigmoid_norm"
"""what Olmo Hybrid was tuned with"""

_LN_2 = math.log(2)


@dataclass(frozen=True)
class Loss:
    """One preference loss.

    about         what it does, in a line, with its paper
    when_equal    its value while the policy equals its reference, from beta and label smoothing; None where a loss
                  compares with no reference
    beta          the default
    normalised    log-probabilities are per token of an answer, so that beta is of the order of 1 and not of 0.1
    smoothing     whether it takes ``label_smoothing``, and whether it needs some
    sorts         compares the sorted pairs of a step, which must therefore be computed together
    weighs_by     what a micro-batch counts for within its step
    """

    about: str
    when_equal: Callable[[float, float], float] | None
    beta: float = 0.1
    normalised: bool = False
    smoothing: Literal["none", "optional", "needed"] = "none"
    sorts: bool = False
    weighs_by: Literal["pairs", "chosen tokens"] = "pairs"


LOSSES = {
    "sigmoid_norm": Loss(
        "-log sigmoid(beta delta) per token: length-normalised DPO (Tulu 3, 2411.15124)",
        lambda beta, smoothing: _LN_2,
        beta=5.0,
        normalised=True,
    ),
    "sigmoid": Loss("-log sigmoid(beta delta): DPO (2305.18290)", lambda beta, smoothing: _LN_2),
    "ipo": Loss(
        "(delta - 1 / (2 beta))^2 per token: a margin to reach, not to exceed (2310.12036)",
        lambda beta, smoothing: 1 / (2 * beta) ** 2,
        normalised=True,
    ),
    "hinge": Loss("max(0, 1 - beta delta): RSO, SLiC (2309.06657)", lambda beta, smoothing: 1.0),
    "robust": Loss(
        "DPO corrected for a known share of flipped pairs (2403.00409)",
        lambda beta, smoothing: _LN_2,
        smoothing="optional",
    ),
    "exo_pair": Loss(
        "reverse KL to the preference (2402.00856)",
        lambda beta, smoothing: -_LN_2 - (math.log1p(-smoothing) + math.log(smoothing)) / 2,
        smoothing="needed",
    ),
    "nca_pair": Loss("holds the chosen answer's likelihood up (2402.05369)", lambda beta, smoothing: 2 * _LN_2),
    "bco_pair": Loss("a classifier of single answers (2404.04656)", lambda beta, smoothing: 2 * _LN_2),
    "sppo_hard": Loss(
        "self-play, each log-ratio drawn to +-1 / (2 beta) (2405.00675)", lambda beta, smoothing: 0.5 / beta**2
    ),
    "aot": Loss(
        "compares the distribution of chosen over rejected with the reference's (2406.05882)",
        lambda beta, smoothing: _LN_2,
        smoothing="optional",
        sorts=True,
    ),
    "aot_unpaired": Loss(
        "compares the distributions of chosen and of rejected answers (2406.05882)",
        lambda beta, smoothing: _LN_2,
        smoothing="optional",
        sorts=True,
    ),
    "apo_zero": Loss(
        "chosen up and rejected down, for answers better than the model's own (2408.06266)",
        lambda beta, smoothing: 1.0,
    ),
    "apo_down": Loss(
        "both down, the rejected one more, for answers worse than the model's own (2408.06266)",
        lambda beta, smoothing: 1.0,
    ),
    "discopop": Loss(
        "a blend of logistic and exponential found by search (2406.08414)",
        lambda beta, smoothing: (_LN_2 + 1) / 2,
    ),
    "sft": Loss(
        "-log pi of the chosen answers per token, without a reference",
        None,
        normalised=True,
        weighs_by="chosen tokens",
    ),
}
