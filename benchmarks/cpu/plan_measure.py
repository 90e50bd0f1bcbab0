"""What ``plan --measure`` says of a step on a CPU, beside real steps.

    python benchmarks/cpu/plan_measure.py --out benchmarks/results/plan_measure_cpu.jsonl

Each turn times layers as the command does, and then real steps of the whole model by the run's own trainer: the
assembly of the batch, forward, backward, clipping and AdamW. The base has random weights. On one thread, by the time
that the processor worked, so that other programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import common
from sft_step import Task, one_step
from transformers import AutoConfig

import hybrid_ft
from hybrid_ft.finetune import models
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.machines.memory import Batch
from hybrid_ft.finetune.planning import measure
from hybrid_ft.finetune.planning.work import Work
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.hybrid_model.checkpoint.config import BUNDLED
from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer

ROWS = Path(__file__).resolve().parents[2] / "datasets/quickstart/train.jsonl"
KINDS = ["linear_attention"] * 3 + ["full_attention"]


def task_of(options: argparse.Namespace, folder: Path) -> Task:
    """A model of ``layers`` layers, three of four recurrent, on rows that fill one pack."""
    tokenizer = load_tokenizer(BUNDLED)
    heads = options.hidden // 64
    of_family = {"rope_parameters": {"rope_theta": None}} if options.family == "olmo_hybrid" else {"head_dim": 64}
    config = AutoConfig.for_model(
        options.family,
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        layer_types=(KINDS * options.layers)[: options.layers],
        linear_num_key_heads=heads,
        linear_num_value_heads=heads,
        linear_key_head_dim=48,
        linear_value_head_dim=96,
        **of_family,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.save_pretrained(folder / "shape")
    hybrid_ft.load(folder / "shape", from_scratch=True, seed=1).save_pretrained(folder / "base")
    lora = {"rank": options.lora} if options.lora else None
    recipe = Recipe.model_validate(
        {
            "model": {"path": str(folder / "base"), "tokenizer": str(BUNDLED), "lora": lora},
            "data": {"sources": [{"path": str(ROWS), "count": options.rows}], "max_length": options.tokens},
            "train": {"batch_tokens": options.tokens, "learning_rate": 1e-4},
        }
    )
    return Task(recipe, prepare(recipe, tokenizer), tokenizer, folder / "base", folder)


def work_of(task: Task) -> Work:
    """The packs as they are; all of them make the step."""
    packs = task.prepared.packs
    assert packs is not None
    lengths = [len(ids) for ids in task.prepared.train["input_ids"]]
    sizes = [sum(lengths[row] for row in pack) for pack in packs]
    typical = tuple(lengths[row] for row in packs[sizes.index(statistics.median_low(sizes))])
    count = len(packs)
    return Work(
        batch=Batch(max(sizes), max(sizes)),
        tokens=sum(sizes),
        epochs=1.0,
        steps=1,
        micro_batches=count,
        dealt=count,
        operations=0.0,
        again=0.0,
        source="",
        rows="",
        typical=typical,
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--family", default="olmo_hybrid", choices=["olmo_hybrid", "qwen3_5_text"])
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters on all linear layers; 0: all weights")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=1024, help="of a pack")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=12.0, help="of timing layers in a turn")
    options = parser.parse_args()
    common.one_quiet_thread()
    measure.time = types.SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(options, Path(folder))
        record = compared(options, task, work_of(task))
    print({name: value for name, value in record.items() if name not in ("said", "real")})
    common.append(options.out, record)


def compared(options: argparse.Namespace, task: Task, work: Work) -> dict[str, Any]:
    trainer: Any = common.ready(task.ours(models.load_model(task.recipe, task.tokenizer)))
    counted = sum(parameter.numel() for parameter in trainer.model.parameters())
    one_step(trainer)
    said, real, parts = [], [], []
    for _ in range(options.turns):
        step = measure.timed(task.recipe, trainer.model.config, work, options.seconds)
        said.append(step.micro_batch * work.tokens / step.tokens + step.optimizer)
        parts.append((step.rest, step.optimizer, *(seconds for seconds, _ in step.layers.values())))
        taken = []
        for _ in range(3):
            began = time.process_time()
            one_step(trainer)
            taken.append(time.process_time() - began)
        real.append(statistics.median(taken))
    off = [one / other - 1 for one, other in zip(said, real, strict=True)]
    return {
        "benchmark": "plan_measure",
        "family": options.family,
        "lora": options.lora,
        "parameters": counted,
        "tokens": work.tokens,
        "micro_batches": work.micro_batches,
        "off_median": round(statistics.median(off), 3),
        "off_least": round(min(off), 3),
        "off_most": round(max(off), 3),
        "of_medians": round(statistics.median(said) / statistics.median(real) - 1, 3),
        "rest_optimizer_layers_ms": [round(1000 * statistics.median(values), 1) for values in zip(*parts, strict=True)],
        "said": [round(value, 4) for value in said],
        "real": [round(value, 4) for value in real],
        "layers": options.layers,
        "hidden": options.hidden,
        "processor": common.processor(),
        **common.versions(),
    }


if __name__ == "__main__":
    main()
