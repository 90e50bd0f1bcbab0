"""Checks that a schema cannot express: keys that contradict each other."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import did_you_mean, holds_secret, shown
from hybrid_ft.finetune.recipe.mistakes import Wrong
from hybrid_ft.finetune.recipe.shipped import task_called
from hybrid_ft.finetune.recipe.streaming_checks import stream_contradictions
from hybrid_ft.finetune.recipe.template_arguments import refused_argument
from hybrid_ft.finetune.recipe.yaml_file import Loc

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source
    from hybrid_ft.finetune.recipe.model_section import Model
    from hybrid_ft.finetune.recipe.schema import Recipe, Suite

TRAINED_PRESETS = ("tiny",)
SHAPE_PRESETS = ("190M", "1B", "7B", "samba-421M", "samba-1.3B")

_ITS_OWN = ("targets", "rank", "alpha", "modules", "modules_to_save", "init", "layers", "rslora", "dora")
"""keys of model.lora that an adapter which goes on brings along"""

SECRET = "holds a secret; remove it, secrets are read from the environment (HF_TOKEN, WANDB_API_KEY)"


def contradictions(recipe: Recipe) -> Iterator[Wrong]:
    """Values that are fine alone and wrong together."""
    data, train, evaluate, model = recipe.data, recipe.train, recipe.evaluate, recipe.model
    yield from secrets(recipe.model_dump())
    if data.packing and train.batch_tokens < data.max_length:
        yield Wrong(
            ("train", "batch_tokens"),
            f"got {train.batch_tokens}; must be at least data.max_length ({data.max_length}) when rows are packed",
            (("data", "max_length"), ("data", "packing")),
        )
    if recipe.stage == "sft":
        yield from _size_of_a_step(recipe)
    if data.eval.sources and (data.eval.fraction or data.eval.count):
        yield Wrong(
            ("data", "eval", "sources"), f"got {shown(data.eval.sources)}; give sources, or fraction or count, not both"
        )
    yield from stream_contradictions(recipe)
    if data.eval.fraction and data.eval.count and not data.streaming:
        yield Wrong(("data", "eval", "count"), f"got {data.eval.count}; give fraction or count, not both")
    yield from _weights(data.sources, ("data", "sources"))
    yield from _weights(data.eval.sources, ("data", "eval", "sources"))
    if data.weight_by != "rows" and all(source.weight is None for source in (*data.sources, *data.eval.sources)):
        unweighed: tuple[Loc, ...] = tuple(("data", "sources", index, "weight") for index in range(len(data.sources)))
        yield Wrong(
            ("data", "weight_by"),
            f"got {data.weight_by}; no source has a weight; give each data.sources[].weight",
            unweighed,
        )
    for index, source in enumerate(data.eval.sources):
        if source.repeat != 1:
            loc = ("data", "eval", "sources", index, "repeat")
            yield Wrong(loc, f"got {source.repeat}; a held-out row counts once, so leave it out")
    if not data.eval.wanted:
        ways = tuple(("data", "eval", key) for key in ("fraction", "count", "sources"))
        needs = "needs held-out rows; set data.eval.fraction, data.eval.count or data.eval.sources"
        if evaluate.every:
            yield Wrong(("evaluate", "every"), f"got {evaluate.every}; {needs}", ways)
        if evaluate.answers:
            yield Wrong(("evaluate", "answers"), f"got {evaluate.answers}; {needs}", ways)
    if evaluate.load_best and not evaluate.every:
        yield Wrong(("evaluate", "load_best"), "needs held-out losses on the way; set evaluate.every")
    if evaluate.suite is not None:
        yield from _suite(evaluate.suite, recipe)
    if model.from_scratch and model.lora:
        yield Wrong(
            ("model", "lora"), "needs trained weights to adapt; set model.from_scratch: false or model.lora: null"
        )
    yield from _adapter(model)
    yield from _template_arguments(model)
    if model.quantize and not model.lora:
        yield Wrong(("model", "quantize"), f"got {model.quantize}; needs model.lora: such weights cannot be trained")
    if model.quantize and model.lora and model.lora.dora:
        yield Wrong(
            ("model", "lora", "dora"),
            "got true; would learn the row lengths of the rounded weights, which the base has not; leave it out",
            (("model", "quantize"),),
        )
    if model.quantize and model.lora and model.lora.init.startswith(("pissa", "olora")):
        yield Wrong(
            ("model", "lora", "init"),
            f"got {model.lora.init}; takes its factors out of weights that {model.quantize} has rounded; leave it out",
            (("model", "quantize"),),
        )
    yield from _new_tokens(model)
    yield from _lora(recipe)
    if model.path in SHAPE_PRESETS and not model.from_scratch:
        yield Wrong(
            ("model", "path"),
            f"got {model.path}, a shape without weights; set model.from_scratch: true or name a model",
        )
    if model.path in SHAPE_PRESETS and model.from_scratch and model.tokenizer is None:
        yield Wrong(("model", "tokenizer"), f"must be set; the preset {model.path} has none of its own")
    yield from _sequence_parallel(recipe)
    for index, tracker in enumerate(train.trackers):
        if importlib.util.find_spec(tracker) is None:
            yield Wrong(("train", "trackers", index), f"got {tracker}, which is not installed; pip install {tracker}")


def _suite(suite: Suite, recipe: Recipe) -> Iterator[Wrong]:
    """Which tasks there are by name, when they are asked, and which of them chooses."""
    loc: Loc = ("evaluate", "suite")
    names = [task_called(task) for task in (*suite.tasks, *suite.forgetting)]
    for at, name in enumerate(names):
        if name in names[:at]:
            key = ("tasks", at) if at < len(suite.tasks) else ("forgetting", at - len(suite.tasks))
            yield Wrong((*loc, *key), f"a task {name} is there already; rename the file")
    if suite.every and recipe.train.sharded:
        text = f"got {suite.every}; a model in pieces writes no answers, leave it out: before and after are measured"
        yield Wrong((*loc, "every"), text, (("train", "sharded"),))
    if not suite.best:
        return
    if suite.best not in names:
        near = did_you_mean(suite.best, names)
        yield Wrong((*loc, "best"), f"got {shown(suite.best)}; must be one of {', '.join(names)}{near}")
    if not suite.every:
        yield Wrong((*loc, "best"), f"got {shown(suite.best)}; needs scores on the way; set evaluate.suite.every")
    if recipe.evaluate.load_best:
        text = f"got {shown(suite.best)}; evaluate.load_best chooses by the held-out loss; one of them can"
        yield Wrong((*loc, "best"), text, (("evaluate", "load_best"),))


def _template_arguments(model: Model) -> Iterator[Wrong]:
    """What a chat template gets beside the messages must be its own to be told."""
    for name, value in (model.chat_template_kwargs or {}).items():
        if wrong := refused_argument(name, value):
            yield Wrong(("model", "chat_template_kwargs", name), wrong)


def _adapter(model: Model) -> Iterator[Wrong]:
    """An adapter to start from, and what is trained then."""
    if model.merge_adapter and not model.adapter:
        yield Wrong(("model", "merge_adapter"), "got true; needs model.adapter, the adapter to merge")
    if model.adapter and model.from_scratch:
        yield Wrong(("model", "adapter"), "needs the base that it was trained on; set model.from_scratch: false")
    lora = model.lora
    if not model.adapter or not lora:
        return
    if model.merge_adapter and not lora.merge:
        yield Wrong(
            ("model", "lora", "merge"),
            "must be true beside model.merge_adapter: the new adapter alone would have no base to open it on",
            (("model", "merge_adapter"),),
        )
    for key in _ITS_OWN:
        default = type(lora).model_fields[key].default
        if not model.merge_adapter and getattr(lora, key) != default:
            yield Wrong(
                ("model", "lora", key),
                f"got {shown(getattr(lora, key))}; model.adapter goes on with its own; leave the key out, or set "
                "model.merge_adapter: true",
            )


def _new_tokens(model: Model) -> Iterator[Wrong]:
    """Each once, and none that an adapter which goes on has no row for."""
    seen: set[str] = set()
    for key in ("new_tokens", "new_special_tokens"):
        texts = getattr(model, key)
        for index, text in enumerate(texts):
            if text in seen:
                yield Wrong(("model", key, index), f"got {shown(text)} twice; name each token once")
            elif not text.strip():
                yield Wrong(("model", key, index), f"got {shown(text)}; must hold more than white space")
            seen.add(text)
        if texts and model.adapter and not model.merge_adapter:
            yield Wrong(
                ("model", key),
                f"got {shown(texts)}; model.adapter goes on with its own tokens; set model.merge_adapter: true",
            )


def _lora(recipe: Recipe) -> Iterator[Wrong]:
    """What is adapted, how it begins and how fast it learns."""
    lora, train = recipe.model.lora, recipe.train
    if lora and train.optimizer != "adamw":
        yield Wrong(
            ("train", "optimizer"),
            f"got {train.optimizer}; is for training all weights, and LoRA's are few; leave it out",
            (("model", "lora"),),
        )
    if train.optimizer == "adamw_bf16":
        yield from _in_bfloat16(recipe)
    if lora is None and train.loraplus_ratio is not None:
        yield Wrong(("train", "loraplus_ratio"), f"got {train.loraplus_ratio:g}; it is LoRA's, set model.lora: {{}}")
    if lora is None:
        return
    if lora.modules and lora.targets != type(lora).model_fields["targets"].default:
        yield Wrong(
            ("model", "lora", "modules"),
            f"got {shown(lora.modules)} beside targets {lora.targets}; name modules or sets, not both",
            (("model", "lora", "targets"),),
        )
    if "experts" in lora.targets.split("+"):
        plain = type(lora)()
        for key in ("dropout", "dora", "init", "layers"):
            if getattr(lora, key) != getattr(plain, key):
                yield Wrong(
                    ("model", "lora", key),
                    f"got {shown(getattr(lora, key))}; PEFT adapts the experts of all layers, by plain factors alone; leave it "
                    "out, or experts out of targets",
                    (("model", "lora", "targets"),),
                )
    if lora.init == "orthogonal" and lora.rank % 2:
        yield Wrong(
            ("model", "lora", "init"),
            f"got orthogonal with rank {lora.rank}; its two halves need an even rank",
            (("model", "lora", "rank"),),
        )


def _sequence_parallel(recipe: Recipe) -> Iterator[Wrong]:
    """What a micro-batch whose tokens lie with several processes does not go with."""
    size, key = recipe.train.sequence_parallel, ("train", "sequence_parallel")
    if size == 1:
        return
    if recipe.stage == "reward":
        yield Wrong(key, f"got {size}; a reward model's rows are not shared so; leave it out", (("reward",),))
    if recipe.stage == "sft" and not recipe.data.packing:
        text = f"got {size}; needs packed rows, set data.packing: true"
        yield Wrong(key, text, (("data", "packing"),))
    if recipe.model.quantize == "int8":
        text = f"got {size}; int8 rounds a token by the others that lie with it; set model.quantize: nf4"
        yield Wrong(key, text, (("model", "quantize"),))
    if recipe.train.neftune_alpha is not None:
        text = f"got {size}; NEFTune's noise goes by whole documents; leave train.neftune_alpha out"
        yield Wrong(key, text, (("train", "neftune_alpha"),))


def _in_bfloat16(recipe: Recipe) -> Iterator[Wrong]:
    """What weights in fewer bits do not go with."""
    key, got = ("train", "optimizer"), "got adamw_bf16"
    if recipe.model.dtype == "float32":
        yield Wrong(key, f"{got}; needs bfloat16 arithmetic; leave model.dtype out", (("model", "dtype"),))


def _size_of_a_step(recipe: Recipe) -> Iterator[Wrong]:
    """Said once, in the unit of the micro-batches, as a whole number of them."""
    train, packing = recipe.train, recipe.data.packing
    ways = (
        ("tokens_per_step", train.tokens_per_step, "batch_tokens", train.batch_tokens, packing),
        ("rows_per_step", train.rows_per_step, "batch_size", train.batch_size, not packing),
    )
    for key, got, unit, size, fits in ways:
        if got is None:
            continue
        if not fits:
            other = "rows_per_step" if packing is False else "tokens_per_step"
            state = "packed" if packing else "not packed"
            yield Wrong(("train", key), f"got {got}; rows are {state}, set train.{other}", (("data", "packing"),))
        elif got % size:
            near = max(1, round(got / size)) * size
            yield Wrong(
                ("train", key),
                f"got {got}; must be a multiple of train.{unit} ({size}), such as {near}",
                (("train", unit),),
            )
        if train.accumulation != 1:
            yield Wrong(("train", "accumulation"), f"got {train.accumulation}; train.{key} says it already")


def secrets(value: Any, loc: Loc = ()) -> Iterator[Wrong]:
    """Every string that holds a credential: a run writes its recipe down, and its output's name
    stands in many files."""
    if isinstance(value, str) and holds_secret(value):
        yield Wrong(loc, SECRET)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from secrets(inner, (*loc, key))


def _weights(sources: list[Source], loc: Loc) -> Iterator[Wrong]:
    have = [source.weight is not None for source in sources]
    if any(have) and not all(have):
        index = have.index(False)
        yield Wrong(
            (*loc, index), "must have a weight, because another source has one; give all of them a weight, or none"
        )
