"""Cached decoding on a CPU beside transformers' Olmo Hybrid with the same weights.

    python benchmarks/cpu/decode.py [--model tiny] [--prompt 32] [--new 256] [--rounds 7] [--compiled]

Both models answer the same random prompt greedily, turn and turn about in one process on one thread; their tokens must
be the same, or nothing is printed. With ``--compiled`` a third side takes part: ours with a static cache and compiled
steps, whose compilation is not timed. Time is CPU seconds of the whole ``generate`` call, the prompt included. Reported
are tokens per second, median and quartiles over the rounds, and the ratio of the two, paired by round. Beside it stands
what the machine's memory allows: each token must read every weight once and the states and keys of each row.
One JSON line per batch size is appended to benchmarks/results/decode_cpu.jsonl.
"""

from __future__ import annotations

import json
import time
from statistics import median, quantiles
from typing import Any

import common
import torch
from transformers import CompileConfig, OlmoHybridForCausalLM

import hybrid_ft


def build(name: str) -> tuple[OlmoHybridForCausalLM, OlmoHybridForCausalLM]:
    """transformers' model and ours with the same random weights, in float32."""
    ours = hybrid_ft.load(name, from_scratch=True, dtype="float32")
    plain = OlmoHybridForCausalLM(ours.config).eval()
    plain.load_state_dict(ours.state_dict())
    for model in (plain, ours):
        # no row ends early, and no logits processor is needed to keep it from that
        model.generation_config.eos_token_id = None
    return plain, ours


def compiled() -> dict[str, Any]:
    """What ``generate`` is told for compiled steps on a CPU."""
    config = CompileConfig(fullgraph=True, mode="default", dynamic=False)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def timed(side: tuple[Any, dict[str, Any]], prompt: torch.Tensor, new: int) -> tuple[float, torch.Tensor]:
    model, options = side
    start = time.process_time()
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, do_sample=False, **options
    )
    return time.process_time() - start, tokens


def read_rate() -> float:
    """Bytes per second at which one thread reads memory, from a sum over 256 MiB."""
    block = torch.ones(64 * 2**20)
    block.sum()
    start = time.process_time()
    for _ in range(4):
        block.sum()
    return 4 * block.numel() * 4 / (time.process_time() - start)


def bytes_per_step(model: OlmoHybridForCausalLM, batch: int, length: int) -> int:
    """Weights once; of each row the recurrent states read and written, and keys and values read."""
    config = model.config
    delta = config.layer_types.count("linear_attention")
    state = config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim
    width = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    attention = len(config.layer_types) - delta
    weights = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel() * (
        not config.tie_word_embeddings
    )
    return 4 * (weights + batch * (2 * delta * state + 2 * attention * width * length))


def quartiles(values: list[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4)
    return {"median": round(median(values), 2), "low": round(low, 2), "high": round(high, 2)}


def measure(
    sides: dict[str, tuple[Any, dict[str, Any]]], batch: int, prompt_tokens: int, new: int, rounds: int
) -> dict:
    ours = sides["hybrid_ft"][0]
    generator = torch.Generator().manual_seed(batch)
    prompt = torch.randint(2, ours.config.vocab_size, (batch, prompt_tokens), generator=generator)
    # as long as it will be timed: a static cache of another length is another graph
    for side in sides.values():
        timed(side, prompt, new)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        answers = []
        for name, side in sides.items():
            spent, tokens = timed(side, prompt, new)
            seconds[name].append(spent)
            answers.append(tokens)
        assert all(torch.equal(answers[0], other) for other in answers), "the sides give different tokens"
    rates = {name: quartiles([batch * new / s for s in spent]) for name, spent in seconds.items()}
    own = seconds["hybrid_ft"]
    ratios = {"ratio": quartiles([theirs / s for theirs, s in zip(seconds["transformers"], own)])}
    if (steps := seconds.get("hybrid_ft compiled")) is not None:
        ratios["compiled_ratio"] = quartiles([s / step for s, step in zip(own, steps)])
    limit = read_rate() / bytes_per_step(ours, batch, prompt_tokens + new // 2) * batch
    return {
        "batch": batch,
        "prompt": prompt_tokens,
        "new": new,
        "tokens_per_second": rates,
        **ratios,
        "memory_bound_tokens_per_second": round(limit),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.set_defaults(out=common.RESULTS / "decode_cpu.jsonl")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    common.one_quiet_thread()
    plain, ours = build(options.model)
    sides: dict[str, tuple[Any, dict[str, Any]]] = {"transformers": (plain, {}), "hybrid_ft": (ours, {})}
    if options.compiled:
        sides["hybrid_ft compiled"] = (ours, compiled())
    machine = {
        "device": common.processor(),
        **common.versions(),
        "model": options.model,
        "parameters": sum(p.numel() for p in ours.parameters()),
    }
    for batch in options.batches:
        line = machine | measure(sides, batch, options.prompt, options.new, options.rounds)
        print(json.dumps(line))
        common.append(options.out, line)


if __name__ == "__main__":
    main()
