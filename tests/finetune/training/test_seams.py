"""Every method of TRL's and transformers' that is overridden, with the parameters that it has upstream.

Where a new version changes one, this fails and names it: look at the override, and then write the new parameters here.
"""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer
from trl import DPOTrainer, KTOTrainer, RewardTrainer, SFTTrainer

from hybrid_ft.finetune.training import seams
from hybrid_ft.finetune.training.dpo.trainer import PairTrainer, StreamedPairTrainer
from hybrid_ft.finetune.training.kto.trainer import AnswerTrainer
from hybrid_ft.finetune.training.reward.trainer import ScoreTrainer
from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer
from hybrid_ft.finetune.training.step_trainer import StepTrainer
from hybrid_ft.finetune.training.trainer import RunTrainer

UPSTREAM: dict[type, tuple[type, dict[str, str]]] = {
    RunTrainer: (
        Trainer,
        {
            "__init__": "model args data_collator train_dataset eval_dataset processing_class model_init compute_loss_func "
            "compute_metrics callbacks optimizers optimizer_cls_and_kwargs preprocess_logits_for_metrics",
            "_load_from_checkpoint": "resume_from_checkpoint model",
            "_load_optimizer_and_scheduler": "checkpoint",
            "_load_scaler": "checkpoint",
            "_init_training_state": "max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
            "get_decay_parameter_names": "model",
            "create_optimizer": "model",
            "_load_rng_state": "checkpoint",
            "get_batch_samples": "epoch_iterator num_batches device",
            "training_step": "model inputs num_items_in_batch",
            "compute_loss_context_manager": "",
            "_get_grad_norm": "model grad_norm",
            "evaluate": "eval_dataset ignore_keys metric_key_prefix",
            "log": "logs start_time",
            "_save_checkpoint": "model trial",
        },
    ),
    PackedSFTTrainer: (
        SFTTrainer,
        {
            "__init__": "model args data_collator train_dataset eval_dataset processing_class compute_loss_func "
            "compute_metrics callbacks optimizers optimizer_cls_and_kwargs preprocess_logits_for_metrics "
            "quantization_config peft_config formatting_func",
            "get_train_dataloader": "",
            "get_batch_samples": "epoch_iterator num_batches device",
            "_get_num_items_in_batch": "batch_samples device",
            "compute_loss": "model inputs return_outputs num_items_in_batch",
        },
    ),
    StepTrainer: (
        Trainer,
        {
            "__init__": "model args data_collator train_dataset eval_dataset processing_class model_init compute_loss_func "
            "compute_metrics callbacks optimizers optimizer_cls_and_kwargs preprocess_logits_for_metrics",
            "get_train_dataloader": "",
            "get_batch_samples": "epoch_iterator num_batches device",
            "training_step": "model inputs num_items_in_batch",
            "compute_loss": "model inputs return_outputs num_items_in_batch",
            "log": "logs start_time",
            "floating_point_ops": "inputs",
        },
    ),
    PairTrainer: (
        DPOTrainer,
        {
            "__init__": "model ref_model args data_collator train_dataset eval_dataset processing_class compute_metrics "
            "callbacks optimizers quantization_config peft_config",
            "_prepare_dataset": "dataset processing_class args dataset_name",
            "_precompute_ref_logps": "dataset name batch_size",
            "compute_ref_log_probs": "model inputs",
            "_compute_loss": "model inputs return_outputs",
        },
    ),
    StreamedPairTrainer: (
        DPOTrainer,
        {
            "__init__": "model ref_model args data_collator train_dataset eval_dataset processing_class compute_metrics "
            "callbacks optimizers quantization_config peft_config",
            "_compute_loss": "model inputs return_outputs",
        },
    ),
    ScoreTrainer: (
        RewardTrainer,
        {
            "__init__": "model args data_collator train_dataset eval_dataset processing_class compute_metrics callbacks "
            "optimizers optimizer_cls_and_kwargs preprocess_logits_for_metrics quantization_config peft_config",
            "_prepare_dataset": "dataset processing_class args dataset_name",
            "compute_loss": "model inputs return_outputs num_items_in_batch",
        },
    ),
    AnswerTrainer: (
        KTOTrainer,
        {
            "__init__": "model ref_model args data_collator train_dataset eval_dataset processing_class compute_metrics "
            "callbacks optimizers quantization_config peft_config",
            "_prepare_dataset": "dataset processing_class args dataset_name",
            "_precompute_ref_logps": "dataset name batch_size",
            "get_train_dataloader": "",
            "training_step": "args kwargs",
            "_compute_kl_logps": "model batch",
            "_compute_loss": "model inputs return_outputs",
        },
    ),
}


@pytest.mark.parametrize("ours", UPSTREAM, ids=lambda cls: cls.__name__)
def test_every_override_is_listed_with_its_reason(ours: type) -> None:
    theirs, _ = UPSTREAM[ours]
    found = {name for name, value in vars(ours).items() if callable(value) and callable(getattr(theirs, name, None))}
    assert found == seams.OVERRIDDEN[ours.__name__].keys()
    assert all(seams.OVERRIDDEN[ours.__name__].values())


@pytest.mark.parametrize(
    ("ours", "name"), [(ours, name) for ours, (_, known) in UPSTREAM.items() for name in known], ids=lambda it: str(it)
)
def test_upstream_has_the_parameters_that_the_override_knows(ours: type, name: str) -> None:
    theirs, known = UPSTREAM[ours]
    assert known.keys() == seams.OVERRIDDEN[ours.__name__].keys()
    method = getattr(theirs, name, None)
    assert method is not None, f"{theirs.__name__}.{name} is gone: {ours.__name__} overrides nothing"
    parameters = " ".join(parameter for parameter in inspect.signature(method).parameters if parameter != "self")
    assert parameters == known[name], f"{theirs.__name__}.{name} takes other parameters: look at {ours.__name__}.{name}"


@pytest.mark.parametrize("theirs", [Trainer, DPOTrainer, KTOTrainer, RewardTrainer], ids=lambda cls: cls.__name__)
def test_what_else_is_used_is_there(theirs: type) -> None:
    """Methods, and names that a class sets on itself somewhere."""
    text = "".join(
        inspect.getsource(cls) for cls in theirs.__mro__ if cls.__module__.startswith(("transformers", "trl"))
    )
    for name in seams.USED[theirs.__name__]:
        assert hasattr(theirs, name) or f"self.{name}" in text, f"{theirs.__name__}.{name} is gone"


def test_what_is_patched_is_restored(tiny_base: Any) -> None:
    import hybrid_ft

    model = hybrid_ft.load(tiny_base)
    before = set(vars(model))
    seams.use_fused_head(model)
    ids = torch.tensor([[5, 6, 7]])
    assert model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs.shape == (1, 2)
    assert seams.without_fused_head(model) is model and set(vars(model)) == before
    assert model.forward.__func__ is type(model).forward

    accelerator = SimpleNamespace()
    with pytest.raises(KeyError), seams.nothing_gathered(accelerator):
        assert accelerator.gather([3]) == [3] and accelerator.gather_for_metrics([3]) == [3]
        raise KeyError
    assert not vars(accelerator)


def test_accelerate_takes_a_divided_model_as_it_is() -> None:
    from accelerate import Accelerator

    model, accelerator = torch.nn.Linear(2, 2), Accelerator(cpu=True)
    prepare = accelerator.prepare_model
    with pytest.raises(KeyError), seams.already_divided(model, accelerator):
        assert accelerator.prepare_model(model) is model
        with accelerator.no_sync(model):
            pass
        raise KeyError
    assert "no_sync" not in vars(model) and accelerator.prepare_model == prepare
