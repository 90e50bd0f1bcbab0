"""What every key of a recipe may hold, written a second time."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from hybrid_ft.finetune.recipe.schema import PREFERENCE

Rule = Callable[[Any], bool]


def whole(low: int, high: float = math.inf) -> Rule:
    return lambda value: type(value) is int and low <= value <= high


def number(low: float, high: float = math.inf, above: bool = False, below: bool = False) -> Rule:
    """``above`` and ``below``: the end itself is outside."""

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return low <= value <= high and not (above and value == low) and not (below and value == high)

    return holds


def one_of(*texts: str) -> Rule:
    return lambda value: isinstance(value, str) and value in texts


def or_null(rule: Rule) -> Rule:
    return lambda value: value is None or rule(value)


def all_of(rule: Rule, length: int | None = None) -> Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, list) and length in (None, len(value)) and all(map(rule, value))

    return holds


def text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and not re.search("[\0-\x08\x0b-\x1f\x7f\ud800-\udfff]", value)


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def targets(value: Any) -> bool:
    return isinstance(value, str) and set(value.split("+")) <= {
        "all-linear",
        "attention",
        "delta",
        "recurrent",
        "mlp",
        "experts",
    }


def patterns(value: Any) -> bool:
    return value != [] and all_of(text)(value)


SOURCE = {
    "path": text,
    "name": or_null(text),
    "split": or_null(text),
    "revision": or_null(text),
    "columns": or_null(text),
}
SOURCE |= {name: lambda value: value is None for name in ("roles", "preference", "labels", "only", "without")}
SOURCE |= {"pairs": one_of("best_worst", "all")}
SOURCE |= {"weight": or_null(number(0, above=True)), "count": or_null(whole(1, 10**9)), "repeat": whole(1, 1000)}
SOURCE |= {"format": or_null(one_of("messages", "prompt-completion", "alpaca", "sharegpt", "text"))}
LOSSES = "sigmoid_norm sigmoid ipo hinge robust exo_pair nca_pair bco_pair sppo_hard aot aot_unpaired apo_zero apo_down"
RULES: dict[str, Rule] = {
    "model.path": text,
    "model.revision": or_null(text),
    "model.from_scratch": flag,
    "model.dtype": one_of("auto", "float32", "bfloat16"),
    "model.tokenizer": or_null(text),
    "model.new_tokens": all_of(text),
    "model.new_special_tokens": all_of(text),
    "model.chat_template": or_null(text),
    "model.chat_template_kwargs": lambda value: value is None,
    "model.chat_template_kwargs.a": lambda value: value == 1,
    "model.quantize": or_null(one_of("nf4", "int8")),
    "model.gradient_checkpointing": lambda value: value is None or flag(value) or value in ("selective", "offload"),
    "model.checkpointed_layers": lambda value: value is None or value == "auto" or whole(0)(value),
    "model.adapter": or_null(text),
    "model.merge_adapter": flag,
    "model.lora.targets": targets,
    "model.lora.rank": whole(1, 1024),
    "model.lora.alpha": whole(1, 10**9),
    "model.lora.dropout": number(0, 1, below=True),
    "model.lora.merge": flag,
    "model.lora.layers": lambda value: value is None or (value != [] and all_of(whole(0))(value)),
    "model.lora.modules": or_null(patterns),
    "model.lora.modules_to_save": or_null(patterns),
    "model.lora.init": one_of("default", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "pissa_niter_16", "olora"),
    "model.lora.rslora": flag,
    "model.lora.dora": flag,
    **{f"data.sources.*.{key}": rule for key, rule in SOURCE.items()},
    **{f"data.eval.sources.*.{key}": rule for key, rule in SOURCE.items()},
    "data.weight_by": one_of("rows", "tokens"),
    "data.streaming": flag,
    "data.shuffle_buffer": whole(1, 10**9),
    "data.eval.sources": lambda value: value == [],
    "data.eval.fraction": number(0, 1, below=True),
    "data.eval.count": or_null(whole(1, 10**9)),
    "data.decontaminate": all_of(text),
    "data.max_length": whole(2, 2**20),
    "data.on_long_row": one_of("drop", "cut", "split", "error"),
    "data.on_bad_row": one_of("error", "skip"),
    "data.max_dropped": number(0, 1),
    "data.reasoning": one_of("template", "text", "drop"),
    "data.train_empty_thoughts": flag,
    "data.packing": flag,
    "data.seed": whole(0, 2**32 - 1),
    "data.cache": lambda value: value is False or or_null(text)(value),
    "train.epochs": number(0, 10_000, above=True),
    "train.steps": or_null(whole(1, 10**9)),
    "train.batch_tokens": whole(1, 2**24),
    "train.batch_size": whole(1, 10**9),
    "train.tokens_per_step": or_null(whole(1, 10**9)),
    "train.rows_per_step": or_null(whole(1, 10**9)),
    "train.accumulation": whole(1, 10**9),
    "train.learning_rate": or_null(number(0, 1, above=True)),
    "train.optimizer": one_of("adamw", "adamw_bf16", "muon"),
    "train.loraplus_ratio": or_null(number(1, 1000)),
    "train.neftune_alpha": or_null(number(0, 1000, above=True)),
    "train.schedule": one_of("linear", "cosine", "constant"),
    "train.warmup": number(0, 1, below=True),
    "train.weight_decay": number(0, 1),
    "train.betas": all_of(number(0, 1, below=True), 2),
    "train.max_grad_norm": number(0, above=True),
    "train.seed": whole(0, 2**32 - 1),
    "train.save_every": whole(1, 10**9),
    "train.keep": whole(1, 10**9),
    "train.log_every": whole(1, 10**9),
    "train.loader_workers": whole(0, 64),
    "train.sharded": lambda value: flag(value) or value == "machine",
    "train.sequence_parallel": whole(1, 10**9),
    "train.check_memory": flag,
    "train.trackers": all_of(one_of("tensorboard", "trackio", "wandb")),
    "dpo.loss": or_null(one_of(*LOSSES.split(), "discopop", "sft")),
    "dpo.beta": or_null(number(0, above=True)),
    "dpo.label_smoothing": number(0, 0.5, below=True),
    "dpo.pairs_per_step": whole(1, 10**9),
    "dpo.reference_cache": or_null(text),
    "dpo.on_long_prompt": one_of("drop", "cut_start", "error"),
    "kto.loss": one_of("kto", "apo_zero_unpaired"),
    "kto.beta": number(0, above=True),
    "kto.desirable_weight": number(0),
    "kto.undesirable_weight": number(0),
    "kto.rows_per_step": whole(1, 10**9),
    "kto.reference_cache": or_null(text),
    "kto.on_long_prompt": one_of("drop", "cut_start", "error"),
    "reward.center_rewards_coefficient": or_null(number(0, above=True)),
    "reward.pairs_per_step": whole(1, 10**9),
    "reward.on_long_prompt": one_of("drop", "cut_start", "error"),
    "evaluate.every": or_null(whole(1, 10**9)),
    "evaluate.load_best": flag,
    "evaluate.answers": whole(0),
    "evaluate.samples": all_of(text),
    "evaluate.max_new_tokens": whole(1, 10**9),
    "evaluate.suite": lambda value: value is None,
    "evaluate.suite.tasks": lambda value: value != [] and all_of(text)(value),
    "evaluate.suite.forgetting": all_of(text),
    "evaluate.suite.limit": or_null(whole(1, 10**9)),
    "evaluate.suite.every": or_null(whole(1, 10**9)),
    "evaluate.suite.best": or_null(text),
    "evaluate.suite.run_code": flag,
    "output": or_null(text),
    "mirror": or_null(text),
    "gpu_price": or_null(number(0, 10_000, above=True)),
}


def values_in(recipe: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a recipe, ``data.sources.*.path``, and what they hold."""
    if isinstance(recipe, dict):
        for name, inner in recipe.items():
            yield from values_in(inner, f"{key}.{name}".removeprefix("."))
    elif isinstance(recipe, list) and recipe and isinstance(recipe[0], dict):
        for inner in recipe:
            yield from values_in(inner, f"{key}.*")
    elif key not in ("model.lora", *PREFERENCE) or recipe is not None:
        yield key, recipe


def broken_rules(recipe: dict[str, Any]) -> list[str]:
    """What an accepted recipe may not hold."""
    found = [f"{key}: {value!r}" for key, value in values_in(recipe) if key not in RULES or not RULES[key](value)]
    data, train, evaluate, held_out = recipe["data"], recipe["train"], recipe["evaluate"], recipe["data"]["eval"]
    ways = [bool(held_out["fraction"]), bool(held_out["count"]), bool(held_out["sources"])]
    weights = [source["weight"] is None for source in data["sources"]]
    suite = evaluate["suite"] or {"best": None, "every": None}
    wrong = {
        "no sources": not data["sources"],
        "rows longer than a batch": data["packing"] and train["batch_tokens"] < data["max_length"],
        "two kinds of held-out rows": sum(ways) > 1 and not (data["streaming"] and ways == [True, True, False]),
        "a number of held-out rows alone": data["streaming"] and ways == [False, True, False],
        "a stream without an end": data["streaming"] and train["steps"] is None,
        "a stream of judged answers": data["streaming"] and bool(recipe.get("kto")),
        "a stream counted before": data["streaming"]
        and (data["weight_by"] == "tokens" or any(source["count"] for source in data["sources"])),
        "nothing held out": not any(ways) and (evaluate["every"] or evaluate["answers"]),
        "best of nothing": evaluate["load_best"] and not evaluate["every"],
        "best of no measure": suite["best"] and (not suite["every"] or evaluate["load_best"]),
        "answers of pieces": suite["every"] and train["sharded"],
        "some weights": any(weights) and not all(weights),
        "shares of nothing": data["weight_by"] == "tokens"
        and all(source["weight"] is None for source in (*data["sources"], *data["eval"]["sources"])),
        "adapters of nothing": recipe["model"]["from_scratch"] and recipe["model"]["lora"],
        "two stages": sum(bool(recipe.get(name)) for name in PREFERENCE) > 1,
        "pairs": any(recipe.get(name) for name in PREFERENCE) and (train["accumulation"] != 1 or not data["packing"]),
        "a step of pairs": any(recipe.get(name) for name in PREFERENCE)
        and (train["tokens_per_step"] or train["rows_per_step"]),
        "a KL term of one row": recipe.get("kto")
        and recipe["kto"]["loss"] == "kto"
        and recipe["kto"]["rows_per_step"] < 2,
        "words of a reward model": recipe.get("reward")
        and (evaluate["answers"] or evaluate["samples"] or recipe["model"]["from_scratch"]),
        "a step of another kind": train["rows_per_step" if data["packing"] else "tokens_per_step"],
        "parts of micro-batches": (train["tokens_per_step"] or 0) % train["batch_tokens"]
        or (train["rows_per_step"] or 0) % train["batch_size"],
        "an optimizer of all weights": train["optimizer"] != "adamw" and recipe["model"]["lora"],
        "weights in fewer bits": train["optimizer"] == "adamw_bf16" and recipe["model"]["dtype"] == "float32",
        "LoRA+ of nothing": train["loraplus_ratio"] is not None and not recipe["model"]["lora"],
        "noise in comparisons": train["neftune_alpha"] is not None and recipe["dpo"],
        "tokens of rows that cannot be shared": train["sequence_parallel"] > 1
        and (
            recipe.get("reward")
            or not data["packing"]
            or train["neftune_alpha"] is not None
            or recipe["model"]["quantize"] == "int8"
        ),
        "two sizes of a step": train["accumulation"] != 1 and (train["tokens_per_step"] or train["rows_per_step"]),
        "nothing filled in": train["learning_rate"] is None or recipe["output"] is None,
    }
    return found + [name for name, is_so in wrong.items() if is_so]
