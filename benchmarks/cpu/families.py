"""Forward and backward of every family, laid flat beside plain transformers padded.

    python benchmarks/cpu/families.py [--out FILE] [--kinds qwen3_5_text lfm2 nemotron_h] [--rounds 5]

Twelve random documents of 20 to 700 tokens, lengths as text has them (log-normal). transformers gets rows padded to the
longest with their mask, ours the same tokens packed. Both run turn and turn about in one process on one thread; their
losses must agree to 1e-5 and every parameter's gradient to 1e-4 of all, or nothing is printed. Reported are CPU
seconds, median and quartiles, their ratio paired by round, and the limit: padded tokens per real token, which is all
that dropping the padding alone could win. Prints one JSON line per family.
"""

from __future__ import annotations

import copy
import json
import warnings
from functools import partial
from statistics import median, quantiles
from typing import Any

import common
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import hybrid_ft
from hybrid_ft.hybrid_model.families.known import family_of_type

_GDN = {
    "hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "linear_key_head_dim": 64,
    "linear_value_head_dim": 64, "linear_num_key_heads": 4, "linear_num_value_heads": 8,
}  # fmt: skip
_LAYERS = ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention", "mlp"]
# larger than the tests' sizes, so that arithmetic and not calling it takes the time
SIZES: dict[str, dict[str, Any]] = {
    "qwen3_5_text": _GDN,
    "qwen3_next": _GDN,
    "lfm2": {"hidden_size": 256, "intermediate_size": 512},
    "nemotron_h": {
        "hidden_size": 256, "layers_block_type": _LAYERS, "head_dim": 64, "intermediate_size": 512,
        "ssm_state_size": 64, "mamba_num_heads": 8, "mamba_head_dim": 64, "chunk_size": 128,
    },
}  # fmt: skip


def build(kind: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """transformers' model of random weights, and a copy of it laid flat; float32, in training mode."""
    sizes = dict(family_of_type(kind).tiny[kind]) | SIZES.get(kind, {})
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):
        config = AutoConfig.for_model(kind, vocab_size=1024, pad_token_id=0, eos_token_id=2, bos_token_id=1, **sizes)
        plain = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return plain.train(), hybrid_ft.lay_flat(copy.deepcopy(plain)).train()


def batches(documents: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]:
    """The same documents padded and packed, with labels for every token but each document's first; the real tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.exp(5.0 + 0.7 * torch.randn(documents, generator=generator)).long().clamp(20, 700).tolist()
    rows = [torch.randint(3, 1024, (n,), generator=generator) for n in lengths]
    ids, mask = torch.zeros(2, documents, max(lengths), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
        labels[i, 1 : len(row)] = row[1:]
    packed = {
        "input_ids": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "labels": torch.cat([torch.cat([torch.tensor([-100]), row[1:]]) for row in rows])[None],
    }
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}, packed, sum(lengths)


def step(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> float:
    """The loss of one forward and backward."""
    model.zero_grad()
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    return float(loss.detach())


def check(plain: PreTrainedModel, flat: PreTrainedModel, losses: tuple[float, float]) -> None:
    """Refuse to report models that do not compute the same."""
    wanted = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    whole = float(torch.stack([gradient.norm() for gradient in wanted.values()]).norm())
    got = dict(flat.named_parameters())
    worst = max(float((got[name].grad - gradient).norm()) for name, gradient in wanted.items())
    if abs(losses[0] - losses[1]) > 1e-5 * losses[0] or worst > 1e-4 * whole:
        raise SystemExit(f"losses {losses}, gradients differ by {worst / whole:.1e}: nothing is reported")


def quartiles(values: list[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4)
    return {"median": round(median(values), 3), "low": round(low, 3), "high": round(high, 3)}


def measure(kind: str, rounds: int) -> dict[str, Any]:
    plain, flat = build(kind)
    padded, packed, tokens = batches(12)
    check(plain, flat, (step(plain, padded), step(flat, packed)))
    sides = {"transformers padded": partial(step, plain, padded), "hybrid_ft packed": partial(step, flat, packed)}
    taken = common.in_turns(sides, rounds)
    return {
        "kind": kind,
        "parameters": sum(p.numel() for p in plain.parameters()),
        "tokens": tokens,
        "padded": padded["input_ids"].numel(),
        "seconds": {name: quartiles(times.cpu) for name, times in taken.items()},
        "ratio": quartiles(common.ratios(*taken.values())),
        "padding_alone": round(padded["input_ids"].numel() / tokens, 2),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--kinds", nargs="+", default=["qwen3_5_text", "lfm2", "nemotron_h"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    common.one_quiet_thread()
    for kind in options.kinds:
        line = {"device": common.processor(), **common.versions(), **measure(kind, options.rounds)}
        print(json.dumps(line))
        common.append(options.out, line)


if __name__ == "__main__":
    main()
