"""Overridden methods and patched objects of TRL, transformers and accelerate.

A new version of one of them breaks here first. The lists are kept true by a test, which also knows the parameters of
every upstream method; each patch below is undone in this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from trl.trainer.utils import add_fused_lm_head

from hybrid_ft.finetune.training.log_prob_head import use_own_head_on_cpu
from hybrid_ft.hybrid_model.families.family import is_scorer

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

OVERRIDDEN = {
    # of transformers' Trainer, in the order in which a run meets them
    "RunTrainer": {
        "__init__": "folder, stop request, arithmetic and origins of the rows",
        "_load_from_checkpoint": "nothing: full weights would be loaded with strict=False, under names not in memory",
        "_load_optimizer_and_scheduler": "no pickle, and a missing tensor is an error",
        "_load_scaler": "nothing: none is saved",
        "_init_training_state": "a resumed run takes its intervals from the recipe; no gradient of frozen embeddings",
        "get_decay_parameter_names": "no decay of A_log",
        "create_optimizer": "LoRA+: a learning rate of its own for B",
        "_load_rng_state": "no pickle, one file for all processes",
        "get_batch_samples": "tokens, padding and rows of a step are counted",
        "training_step": "the losses of a step are summed; the watchdog hears of it",
        "compute_loss_context_manager": "the arithmetic of every forward",
        "_get_grad_norm": "no step where loss or gradient is not finite",
        "evaluate": "exact, shared among the processes, ended early by a stop",
        "log": "tokens, speed and memory beside the loss",
        "_save_checkpoint": "staged, listed with digests and renamed; whole tensors; no pickle",
    },
    "PackedSFTTrainer": {
        "__init__": "this project's head on a CPU",
        "get_train_dataloader": "batches are dealt out to the processes, none twice",
        "get_batch_samples": "a process takes its tokens of what its team shares",
        "compute_loss": "TRL's metrics are not gathered; tokens are weighed",
        "_get_num_items_in_batch": "the weights of a step are summed, over all processes",
    },
    "StreamedSFTTrainer": {
        "__init__": "a stream beside the sample of it",
        "get_train_dataloader": "micro-batches of a stream, from the checkpoint's place on",
        "get_batch_samples": "the stream's state is kept with the step",
    },
    "StepTrainer": {
        "__init__": "no dropout",
        "get_train_dataloader": "whole steps in every process, which takes its part of each",
        "get_batch_samples": "a step is counted whole",
        "training_step": "a step's micro-batches, each weighed by its share",
        "compute_loss": "weighed by the share; TRL's metrics are not gathered",
        "log": "margins, accuracies, log-probabilities",
        "floating_point_ops": "prompts are counted once",
    },
    "PairTrainer": {
        "__init__": "no reference model, a head of log-probabilities alone",
        "_prepare_dataset": "nothing: the pairs are prepared",
        "_precompute_ref_logps": "nothing: the reference has its cache",
        "compute_ref_log_probs": "each prompt is computed once",
        "_compute_loss": "each prompt is computed once; measures are summed",
    },
    "StreamedPairTrainer": {
        "__init__": "the reference's forward is counted",
        "_compute_loss": "the reference comes with each micro-batch",
    },
    "ScoreTrainer": {
        "__init__": "micro-batches by tokens, each prompt once",
        "_prepare_dataset": "nothing: the pairs are prepared",
        "compute_loss": "scores are summed for the measures",
    },
    "AnswerTrainer": {
        "__init__": "no reference model, a head of log-probabilities alone",
        "_prepare_dataset": "nothing: the answers are prepared",
        "_precompute_ref_logps": "nothing: the reference has its cache",
        "get_train_dataloader": "whole steps, whose mismatched answers stay the same",
        "training_step": "the KL term of the whole step first",
        "_compute_kl_logps": "the KL term is the step's",
        "_compute_loss": "each prompt is computed once; measures are summed",
    },
}
"""Class -> method -> why."""

USED = {
    "Trainer": (
        "_get_train_sampler",
        "_prepare_inputs",
        "callback_handler",
        "current_gradient_accumulation_steps",
        "model_wrapped",
        "store_flos",
    ),
    "DPOTrainer": ("_compute_loss", "_metrics", "_tokenizer", "loss_types", "beta", "label_smoothing"),
    "KTOTrainer": ("_compute_loss", "_metrics", "_tokenizer", "beta", "calculate_KL"),
    "RewardTrainer": ("_metrics",),
}
"""What else of theirs is used that is not documented: methods, and names that their methods set."""


def plain_model(model: Any) -> PreTrainedModel:
    """transformers' model, under PEFT's where there is one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def use_fused_head(model: Any, trl_has_put_one: bool = False) -> None:
    """Replace ``forward`` on the instance: with ``fused_lm_head=True`` it gives log-probabilities and never logits.

    TRL's head, and on a CPU this project's over it. Undone by ``without_fused_head``. A reward model has a
    head of its own.
    """
    plain = plain_model(model)
    if is_scorer(plain.config):
        return
    if not trl_has_put_one:
        add_fused_lm_head(plain)
    use_own_head_on_cpu(plain)


def without_fused_head(model: Any) -> Any:
    """``model`` with its class's ``forward`` again: a copy of a model whose forward was replaced on the instance would
    run the original's."""
    plain_model(model).__dict__.pop("forward", None)
    return model


@contextmanager
def nothing_gathered(accelerator: Accelerator) -> Iterator[None]:
    """Inside the block gathering returns this process's own values.

    TRL gathers its metrics after every micro-batch. They are not shown, ours are reduced once, and pairs' differ in
    size between processes, where a collective call never returns.
    """

    def own(values: Any, *args: Any, **kwargs: Any) -> Any:
        return values

    accelerator.gather = accelerator.gather_for_metrics = own
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


@contextmanager
def _within_machines(model: Any) -> Iterator[None]:
    """Inside the block gradients are reduced among those who share a copy, and not over the copies,
    if there are any."""
    model.set_requires_all_reduce(False)
    try:
        yield
    finally:
        model.set_requires_all_reduce(True)


@contextmanager
def already_divided(model: Any, accelerator: Accelerator) -> Iterator[None]:
    """Inside the block accelerate takes a model that lies in pieces as it is.

    ``accelerator.prepare_model`` adds autocast, and no DDP. ``model.no_sync`` is what accelerate asks a model for
    before all but the last micro-batch of a step. Gradients that are not reduced at once stay whole on every process:
    29.7 GB of a 7B, to spare a reduce-scatter of a tenth of a second on NVLink.
    """
    model.no_sync = partial(_within_machines, model)
    accelerator.prepare_model = partial(accelerator.prepare_model, evaluation_mode=True)
    try:
        yield
    finally:
        del model.no_sync, accelerator.prepare_model
