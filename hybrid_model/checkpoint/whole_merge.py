"""A merged checkpoint compared with PEFT's own merge, where memory allows."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from hybrid_ft.hybrid_model.checkpoint.adapter_changes import HEAD
from hybrid_ft.hybrid_model.checkpoint.config import read_config
from hybrid_ft.hybrid_model.checkpoint.merge import Merge
from hybrid_ft.hybrid_model.checkpoint.tensor_files import stored_tensors
from hybrid_ft.hybrid_model.checkpoint.text_model import reopened
from hybrid_ft.hybrid_model.checkpoint.torch_functions import torch_functions

OPENED_WHOLE = 3 * 10**8
"""Parameters of the largest model that is compared whole: twice 1.2 GB in float32."""
# A weight next to the middle of two values may be rounded the other way: sums are taken in another order.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def compare_with_peft(merge: Merge, out: Path) -> float:
    """Relative L2 difference of the logits of 64 tokens. Raises RuntimeError for a missing or unexpected tensor, and
    for a difference beyond rounding.
    """
    written = reopened(out, read_config(out))
    expected = _merged_by_peft(merge)
    tokens = torch.randint(merge.config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch_functions():
        theirs, ours = (model.eval()(tokens, use_cache=False).logits.double() for model in (expected, written))
    difference = float((ours - theirs).norm() / theirs.norm())
    limit = max(_TOLERANCE[dtype] for dtype in merge.dtypes.values())
    if not difference <= limit:
        raise RuntimeError(f"{out}: logits differ by {difference:.1e} from PEFT's own merge (at most {limit:.0e})")
    return difference


def _merged_by_peft(merge: Merge) -> Any:
    """In float32, rounded to the result's dtypes. Of adapter_config.json PEFT sees only what was read from it here."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    changes = merge.changes
    model: Any = reopened(merge.base, read_config(merge.base))
    if model.get_input_embeddings().num_embeddings != changes.vocabulary:
        model.resize_token_embeddings(changes.vocabulary, mean_resizing=False)
    if merge.tied_base and not changes.tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    whole = {name: change.whole.read().float() for name, change in changes.of.items() if change.whole is not None}
    unknown = model.load_state_dict(whole, strict=False).unexpected_keys
    if unknown:
        raise RuntimeError(f"{merge.folder}: plain transformers has no {unknown[0]}")
    sums = {
        name.removesuffix(".weight"): change
        for name, change in changes.of.items()
        if change.a is not None or change.tokens is not None
    }
    if not sums:
        return _rounded(model, merge)
    experts = {name: change for name, change in sums.items() if change.experts}
    factors = {name: change for name, change in sums.items() if change.a is not None and name not in experts}
    ranks = {name: change.rank for name, change in factors.items()}
    one = next(iter(experts.values()), None)
    rows = {name: change.token_ids for name, change in sums.items() if change.tokens is not None}
    if changes.tied and len(rows) == 1:
        rows = {merge.embedding.removesuffix(".weight"): next(iter(rows.values()))}
    config = LoraConfig(
        r=one.rank if one else 8,
        lora_alpha=one.scale * one.rank if one else 8,
        target_parameters=sorted({".".join(name.split(".")[-3:]) for name in experts}) or None,
        target_modules=sorted(factors) or ([] if experts else ["no layer at all"]),
        rank_pattern=ranks,
        alpha_pattern={name: change.scale * ranks[name] for name, change in factors.items()},
        use_dora=any(change.magnitude is not None for change in factors.values()),
        trainable_token_indices=rows or None,
        ensure_weight_tying=changes.tied and any(f"{name}.weight" in (merge.embedding, HEAD) for name in factors),
        task_type="CAUSAL_LM",
    )
    stored = stored_tensors(merge.weights)
    tensors = {name: tensor.read().float() for name, tensor in stored.items() if "lora_" in name or "token_" in name}
    with warnings.catch_warnings(action="ignore"):
        adapted = get_peft_model(model, config)
        set_peft_model_state_dict(adapted, tensors)
        return _rounded(adapted.merge_and_unload(), merge)


@torch.no_grad()
def _rounded(model: Any, merge: Merge) -> Any:
    for name, parameter in model.named_parameters():
        parameter.copy_(parameter.to(merge.rounding(name)))
    return model
