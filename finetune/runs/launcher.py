"""What accelerate's launcher asks for, held against what the recipe says.

A launcher speaks by environment variables, which accelerate and transformers read again wherever they like: a mixed
precision of the launcher's would train a recipe of float32 in bfloat16, without a word, and write such a reference into
a cache that others share. So either both say the same, or the run does not begin.
"""

from __future__ import annotations

import os

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.recipe.schema import Recipe, changed
from hybrid_ft.finetune.runs import device

_YES = ("1", "true", "yes", "y", "on", "t")

# No such thing is done here, whatever the recipe says: the variable, what it is called, and what there is instead.
_NOT_HERE = (
    ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed", "train.sharded: true divides the model over the processes (FSDP2)"),
    ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM", "train.sharded: true divides the model over the processes (FSDP2)"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism config", "train.sharded: true divides the model (FSDP2)"),
    ("ACCELERATE_USE_SAGEMAKER", "SageMaker's launcher", "torchrun or accelerate launch start the processes"),
)
_SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
# Of --use_fsdp: the variable, the values that are what happens here, and what that is.
_DIVIDED = (
    ("FSDP_OFFLOAD_PARAMS", ("false",), "weights stay on the GPU"),
    ("FSDP_SHARDING_STRATEGY", ("full_shard", "1"), "weights, gradients and moments are divided"),
    ("FSDP_RESHARD_AFTER_FORWARD", ("true", "full_shard"), "a layer's weights are let go after its forward"),
    ("FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD", ("false",), "activations stay on the GPU"),
    ("FSDP_IGNORED_MODULES", ("", "none"), "every module is divided"),
)


def agreed(recipe: Recipe, bfloat16: bool) -> Recipe:
    """The recipe with what the launcher adds to it: ``--use_fsdp`` is ``train.sharded: true``.

    bfloat16  whether the recipe's arithmetic is
    Raises InputError, status 3, one line for each setting of the launcher's that the run would not follow.
    """
    wrong = [*_not_here(), *_of_the_recipe(recipe, bfloat16)]
    if divided := _says("ACCELERATE_USE_FSDP") in _YES:
        wrong += _of_division(recipe)
    if wrong:
        raise InputError("\n".join(wrong), ENVIRONMENT)
    # accelerate would divide the model in its own way
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    if not divided or recipe.train.sharded:
        return recipe
    return changed(recipe, "train", sharded=True)


def elastic_note(output: object) -> str:
    """Lines for the screen of a run under torchrun, or accelerate's launcher, which is one: what becomes of statuses
    and of long saves."""
    if not _says("TORCHELASTIC_RUN_ID"):
        return ""
    note = f"\nlauncher  this one ends with 1 whatever happened: hybrid-ft status {output} tells it"
    if _says(_SHUTDOWN):
        return note
    mend = f"export {_SHUTDOWN}=3600, or use hybrid-ft launch"
    return f"{note};\n          after a signal it kills a save that takes over 30 s: {mend}"


def _says(name: str, unset: str = "") -> str:
    return os.environ.get(name, unset).strip().lower()


def _not_here() -> list[str]:
    wrong = [
        f"{name} is set: {what} is not used here; {instead}. Start without it"
        for name, what, instead in _NOT_HERE
        if _says(name) in _YES
    ]
    if _says("ACCELERATE_DYNAMO_BACKEND", "no") not in ("", "no"):
        backend = os.environ["ACCELERATE_DYNAMO_BACKEND"]
        wrong.append(
            f"ACCELERATE_DYNAMO_BACKEND is {backend}: a model is not compiled here. Start with --dynamo_backend no"
        )
    if place := _says("ACCELERATE_TORCH_DEVICE"):
        wrong.append(
            f"ACCELERATE_TORCH_DEVICE is {place}: each process takes its own GPU here, or the processor with --cpu. "
            "Start without it"
        )
    return wrong


def _of_the_recipe(recipe: Recipe, bfloat16: bool) -> list[str]:
    """``no`` says nothing: accelerate hands it on where its user has not chosen."""
    wrong = []
    precision, dtype = _says("ACCELERATE_MIXED_PRECISION", "no"), "bfloat16" if bfloat16 else "float32"
    if precision not in ("", "no", "bf16" if bfloat16 else "no"):
        here = dtype if recipe.model.dtype == dtype else f"auto, which is {dtype} here"
        fix = "set model.dtype: bfloat16, or start" if precision == "bf16" else "start"
        wrong.append(
            f"ACCELERATE_MIXED_PRECISION is {precision} and model.dtype is {here}; {fix} with --mixed_precision no"
        )
    steps = _says("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("", "1"):
        wrong.append(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {steps} and the recipe says how large a step is; set "
            "train.tokens_per_step, and start without --gradient_accumulation_steps"
        )
    clip = _says("ACCELERATE_GRADIENT_CLIPPING")
    if clip not in ("", "none") and clip != str(recipe.train.max_grad_norm):
        wrong.append(
            f"ACCELERATE_GRADIENT_CLIPPING is {clip} and train.max_grad_norm is {recipe.train.max_grad_norm:g}; "
            "set train.max_grad_norm, and start without --gradient_clipping"
        )
    return wrong


def _of_division(recipe: Recipe) -> list[str]:
    checkpointing = recipe.model.gradient_checkpointing
    checkpointing = device.is_gpu() if checkpointing is None else checkpointing
    wrong = [
        f"{name} is {os.environ[name]} and here {here}; start with {name.lower()} {fine[0] or 'left out'}"
        for name, fine, here in _DIVIDED
        if _says(name, fine[0]) not in fine
    ]
    if _says("FSDP_ACTIVATION_CHECKPOINTING") in _YES and not checkpointing:
        wrong.append("FSDP_ACTIVATION_CHECKPOINTING is true and model.gradient_checkpointing is false; let them agree")
    return wrong
