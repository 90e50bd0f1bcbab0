"""Beside flash-linear-attention, transformers, TRL: the op, a layer, whole steps, decoding, attention.

The sides take turns in one process, few turns each, on the code of the GPU benchmark.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from rows import Rows

TURNS = 3


def _setting(dry: bool) -> Any:
    from common import Setting

    return Setting(dry, 1 if dry else TURNS, 20)


def _told(rows: Rows, name: str, unit: str, record: dict[str, Any], less_is_better: bool = True) -> None:
    if "failed" in record:
        rows.add(name, failed=record["failed"], wrong=record.get("red", False))
        return
    theirs = record["theirs"]
    rest = {
        key: record[key]
        for key in ("note", "ours_mfu", "ours_peak_gib", "theirs_mfu", "theirs_peak_gib")
        if key in record
    }
    value = theirs["median"] if isinstance(theirs, dict) else theirs
    rows.add(name, record["ours"]["median"], unit, theirs=value, **rest)
    if not less_is_better and isinstance(theirs, dict):
        rows.add(f"{name}, ours over theirs", record["ratio"], "x")


def op(rows: Rows, dry: bool) -> None:
    """Times of graphs first, then with the host's part; fla tunes itself over all its configurations, which are
    compiled."""
    import checks
    import theirs
    from launches import graphs
    from sizes import Sizes

    from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule

    sizes, setting = Sizes(dry), _setting(dry)
    for sequences in (8, 1):
        label = f"op, {sequences} sequence{'s' * (sequences != 1)}"
        given = sizes.delta_rule_inputs(sequences, "cpu" if dry else "cuda")
        found: dict[str, dict[str, float]] = {}
        for side, rule in (("ours", lambda: gated_delta_rule), ("theirs", theirs.delta_rule)):
            with rows.attempt(f"{label}: {side}", wrong=dry):
                chosen = rule()
                if side == "theirs" and sequences == 8 and not dry:
                    rows.add("fla's results", checks.error_of(chosen, setting.device))
                found[side] = {"forward": 0.0, "backward": 0.0} if dry else graphs(chosen, *given)
        for name in ("forward", "backward"):
            if "ours" in found:
                floor = {"forward": 0.27, "backward": 0.72}[name]
                other = found.get("theirs", {}).get(name)
                rows.add(f"{label}: {name}", found["ours"][name], "ms", theirs=other, floor=floor, note="CUDA graphs")
        with rows.attempt(f"{label}: eager", wrong=dry):
            import delta_rule

            checks.delta_rule = lambda device: None  # part 1 has tested it
            for name, record in zip(("forward", "backward", "both"), delta_rule.measure(setting, sequences)):
                _told(rows, f"{label}, eager: {name}", "ms", record)


def layer(rows: Rows, dry: bool) -> None:
    import layer as part

    for sequences in (8, 1):
        with rows.attempt(f"layer, {sequences}", wrong=dry):
            time, memory = part.measure(_setting(dry), sequences)
            _told(rows, f"delta layer, {sequences} sequences: forward and backward", "ms", time)
            _told(rows, f"delta layer, {sequences} sequences: peak memory", "GiB", memory)


def attention(rows: Rows, dry: bool) -> None:
    import attention as part

    for sequences in (1, 8):
        with rows.attempt(f"attention, {sequences}", wrong=dry):
            _told(
                rows,
                f"attention, {sequences} sequences: forward and backward",
                "ms",
                part.measure(_setting(dry), sequences)[0],
            )


def model(rows: Rows, dry: bool) -> None:
    """Both whole models on the same weights, built once: steps of SFT, of LoRA, and decoding of one row."""
    import checks
    import common
    import decode
    import step

    setting = _setting(dry)
    with rows.attempt("whole model, two layers", wrong=True):
        checks.model(setting.preset, setting.device)
    checks.model = lambda preset, device: None  # once is enough
    common.WARM_UP = 1  # a step takes seconds
    built = step.build(setting)
    step.build = lambda setting: _fresh(built)
    decode.build = step.build

    def rate(name: str, unit: str, measure: Callable[[], list[dict[str, Any]]]) -> None:
        with rows.attempt(name, wrong=dry):
            _told(rows, name, unit, measure()[0], less_is_better=False)
        gc.collect()
        if not dry:
            torch.cuda.empty_cache()

    rate("full step, 8 sequences", "tokens/s", lambda: step.measure(setting, 8, False))
    rate("decode, 1 row", "tokens/s", lambda: decode.measure(setting, 1))
    rate("full step, 1 sequence", "tokens/s", lambda: step.measure(setting, 1, False))
    rate("LoRA step, 8 sequences", "tokens/s", lambda: step.measure(setting, 8, True))


def _fresh(model: Any) -> Any:
    """As it was built, but for what its steps have added to the weights."""
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad_(True)
    return model.train()
