"""What a layer keeps until its backward, in bytes a token.

Which operations it has is in its family's record (``Step``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from hybrid_ft.hybrid_model.families.family import Step

FLOAT32 = 4
"""bytes"""
CHUNK = 64
"""tokens of a chunk of the delta rule"""

_ATTENTION = ("q_proj", "k_proj", "v_proj")
_MLP = ("gate_proj", "up_proj")


def attends(config: Any, number: int) -> bool:
    """Whether a layer is of attention, with or without a window; where no kinds are named, all are."""
    kinds = getattr(config, "layer_types", None)
    return not kinds or kinds[number] != "linear_attention"


def projections(step: Step) -> tuple[str, ...]:
    return (*step.delta, step.out, *_ATTENTION, "o_proj", *_MLP, "down_proj")


def _inputs(names: Collection[str], width: int, own: dict[str, tuple[int, float]], full: bool, arithmetic: int) -> int:
    """Bytes a token of one tensor that several projections read, as they keep it.

    In full training autocast makes of the float32 tensor a copy for each of them; adapters share it, unless each drops
    some of it.
    """
    if full:
        return arithmetic * width * (len(names) if arithmetic != FLOAT32 else 1)
    adapted = [own[name] for name in names if name in own]
    dropped = sum(drop > 0 for _, drop in adapted)
    shared = arithmetic * width if dropped < len(adapted) else 0
    return shared + dropped * (arithmetic + 1) * width + sum(rank for rank, _ in adapted) * arithmetic


@dataclass(frozen=True)
class Moment:
    """A moment of an MLP's backward that may be the one with the most.

    spare  bytes a token beside what backward needs
    last   numbers of weights whose gradients are whole by then
    again  while it is computed again, where it is
    """

    spare: int = 0
    last: int = 0
    again: bool = False


@dataclass(frozen=True)
class Mlp:
    """What comes after the mixing: an MLP, or routed experts with a shared one.

    kept     bytes a token that its backward needs
    forward  bytes a token that forward has beside these when experts have answered
    """

    kept: int
    moments: tuple[Moment, ...]
    forward: int = 0


def of_mlp(
    config: Any, step: Step, number: int, own: dict[str, tuple[int, float]], full: bool, small: bool, arithmetic: int
) -> Mlp:
    """``small``: all weights are trained in the arithmetic's dtype."""
    if experts_of(config, step, number):
        return _of_experts(config, own, full, full or small, arithmetic)
    hidden, middle = config.hidden_size, config.intermediate_size
    last = hidden * middle if full or small else 0
    spare = (3 - (full or "down_proj" in own)) * arithmetic * middle
    return Mlp(_of_swiglu(_MLP, hidden, middle, own, full, arithmetic), (Moment(spare, last),))


def experts_of(config: Any, step: Step | None, number: int) -> int:
    """Numbers of a layer's routed experts, 0 where it has none."""
    every = getattr(config, "decoder_sparse_step", 1)
    routed = number not in getattr(config, "mlp_only_layers", ()) and (number + 1) % every == 0
    if step is None or not step.experts or not routed:
        return 0
    return int(3 * config.num_experts * config.hidden_size * config.moe_intermediate_size)


def _of_swiglu(
    reading: Collection[str], hidden: int, middle: int, own: dict[str, tuple[int, float]], full: bool, arithmetic: int
) -> int:
    """``reading``: the projections that read its input."""
    down = _inputs(("down_proj",), middle, own, full, arithmetic)
    return _inputs(reading, hidden, own, full, arithmetic) + 2 * arithmetic * middle + down


def _of_experts(config: Any, own: dict[str, tuple[int, float]], full: bool, trained: bool, arithmetic: int) -> Mlp:
    """transformers' own, each token copied for each of its experts, in the order of these (``grouped_mm``)."""
    hidden, middle, each = config.hidden_size, config.moe_intermediate_size, config.num_experts_per_tok
    own = own | ({"router": (0, 0.0), "shared_expert_gate": (0, 0.0)} if trained else {})
    shared = _of_swiglu(
        (*_MLP, "router", "shared_expert_gate"), hidden, config.shared_expert_intermediate_size, own, full, arithmetic
    )
    # experts are multiplied as they are kept, and what they read and give is in their dtype
    number = FLOAT32 if full else arithmetic
    # what they gave, which the router's weights multiply; gate and up as projected, and the gate's SiLU
    chosen = number * (hidden + 3 * middle) + 4 * 8  # orders and indices
    if trained:
        chosen += number * (hidden + middle)  # what they read
    kept = shared + each * chosen + FLOAT32 * config.num_experts + arithmetic * hidden
    # gradients of what the shared expert gave and of what all read, then of the products with the router's weights
    beside = (number + arithmetic) * hidden
    each_read = number * each * hidden
    moments = [Moment(beside + 2 * each_read, again=True), Moment(beside + 3 * each_read)]
    if trained:  # the experts' activations are gone, and their weights' gradients are there
        all_numbers = 3 * config.num_experts * hidden * middle
        moments.append(Moment(beside - 2 * number * each * middle, all_numbers))
    # what they gave by the router's weights, and in the order of the tokens; what the shared expert gave
    return Mlp(kept, tuple(moments), 2 * each_read + arithmetic * hidden)


def of_delta(
    config: Any, step: Step, own: dict[str, tuple[int, float]], full: bool, arithmetic: int, stream: int
) -> int:
    """Bytes a token that backward of a delta layer needs beside its input."""
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    heads = config.linear_num_value_heads
    values = heads * config.linear_value_head_dim
    projected = 2 * keys + 2 * values
    convolved = 2 * keys + values
    return (
        _inputs(step.delta, config.hidden_size, own, full, arithmetic)
        + arithmetic * (projected + convolved + values)
        + _inputs((step.out,), values, own, full, arithmetic)
        + heads * (arithmetic * CHUNK + 44)  # within chunks; decays at their steps, gates, a and b
        + stream * config.hidden_size  # the sum that the second norm reads
    )


def of_attention(
    config: Any, step: Step, own: dict[str, tuple[int, float]], full: bool, arithmetic: int, stream: int
) -> int:
    """The same of an attention layer. Norms that come after mixer and MLP read what those give."""
    queries, hidden = queries_of(config), config.hidden_size
    keys = queries // config.num_attention_heads * config.num_key_value_heads
    if step.gated:  # the gate and its sigmoid, what attention gave and that side by side, which the sigmoid multiplies
        given = 4 * queries
    else:
        given = 0 if full or "o_proj" in own else queries  # attention's backward reads what it gave
    if step.after:
        norms = 2 * arithmetic * hidden
        if any(own[name][1] == 0 for name in _ATTENTION if name in own):  # they read the input itself
            norms -= arithmetic * hidden
    else:
        norms = stream * hidden
    return (
        _inputs(_ATTENTION, hidden, own, full, arithmetic)
        + arithmetic * (2 * queries + 3 * keys + given)  # as projected, and with norm and rope; v
        + _inputs(("o_proj",), queries, own, full, arithmetic)
        + 4 * config.num_attention_heads
        + norms
    )


def queries_of(config: Any) -> int:
    """Attention's channels."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_attention_heads * head)


def keys_of(config: Any, arithmetic: int) -> int:
    """Bytes a token of an attention layer's keys and values."""
    return 2 * arithmetic * queries_of(config) // config.num_attention_heads * config.num_key_value_heads


def by_heads(config: Any, attends: bool, arithmetic: int) -> tuple[int, int]:
    """Heads of a layer, and bytes a token of theirs that its backward needs: what the mixer's
    operators read and return."""
    if attends:
        queries, heads = queries_of(config), config.num_attention_heads
        keys = queries // heads * config.num_key_value_heads
        return config.num_key_value_heads, arithmetic * (2 * queries + 2 * keys) + 4 * heads
    keys, heads = config.linear_num_key_heads * config.linear_key_head_dim, config.linear_num_value_heads
    values = heads * config.linear_value_head_dim
    return config.linear_num_key_heads, arithmetic * 2 * (2 * keys + values) + heads * (arithmetic * CHUNK + 44)


def mixed(config: Any, attends: bool, arithmetic: int) -> int:
    """Bytes a token of what the delta rule's operator, or attention's, returns."""
    if not attends:
        heads = config.linear_num_value_heads
        return heads * (arithmetic * (config.linear_value_head_dim + CHUNK) + 32)
    return arithmetic * queries_of(config) + 4 * config.num_attention_heads


def state(config: Any) -> int:
    """Numbers of the recurrent state of a delta layer; 0 where a model has none."""
    if not hasattr(config, "linear_num_value_heads"):
        return 0
    return int(config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim)
