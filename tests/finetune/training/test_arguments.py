"""What a recipe's settings make of the training."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


def test_weight_decay_is_for_matrices(tiny_base):
    import hybrid_ft
    from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer

    model = hybrid_ft.load(tiny_base)
    decayed = set(PackedSFTTrainer.get_decay_parameter_names(PackedSFTTrainer.__new__(PackedSFTTrainer), model))
    left = {name.rpartition("layers.")[2] for name, _ in model.named_parameters()} - {
        name.rpartition("layers.")[2] for name in decayed
    }
    kinds = {name.removesuffix(".weight").rpartition(".")[2] for name in left}
    assert kinds == {
        "A_log", "dt_bias", "o_norm", "q_norm", "k_norm", "norm",
        "input_layernorm", "post_attention_layernorm", "post_feedforward_layernorm",
    }  # fmt: skip


def test_trl_decides_nothing_by_itself(start, monkeypatch):
    """TRL's and transformers' own choices that would cut rows, lose precision, write files or reach the network."""
    from hybrid_ft.finetune.training.sft import stage as sft

    made: list[Any] = []
    arguments = sft.sft_arguments
    monkeypatch.setattr(
        sft, "sft_arguments", lambda *args, **kwargs: made.append(arguments(*args, **kwargs)) or made[-1]
    )
    start(train={"steps": 1, "betas": [0.8, 0.9], "weight_decay": 0.25, "max_grad_norm": 0.5})
    args = made[0]
    assert (args.max_length, args.bf16, args.fp16, args.gradient_checkpointing) == (None, False, False, False)
    assert (args.report_to, args.push_to_hub, args.dataloader_drop_last) == ([], False, False)
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.8, 0.9, 0.25, 0.5)
    assert args.neftune_noise_alpha is None and args.label_smoothing_factor == 0 and args.loss_type == "nll"


def test_schedule_and_warm_up_are_the_recipes(start):
    rates = start(train={"steps": 10, "warmup": 0.2, "schedule": "linear", "learning_rate": 1.0e-3}).metrics(
        "learning_rate"
    )
    wanted = [0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert list(rates.values()) == pytest.approx([rate * 1e-3 for rate in wanted])
    constant = start("two", train={"steps": 4, "warmup": 0.0, "schedule": "constant"}).metrics("learning_rate")
    assert list(constant.values()) == [1e-2] * 4


def test_a_single_step_moves_the_weights(start):
    # transformers gives the first of any warm-up steps a rate of 0
    assert list(start(train={"steps": 1, "warmup": 0.03}).metrics("learning_rate").values()) == [1e-2]


def test_trackers_get_the_same_numbers(start):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = start(train={"steps": 2, "trackers": ["tensorboard"]})
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert {"train/tokens_per_s", "train/padding", "train/grad_norm"} <= set(events.Tags()["scalars"])


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_keeps_weights_in_float32(start):
    """And recomputing activations changes no number."""
    model = {"dtype": "bfloat16"}
    run = start("one", model=model)
    saved = load_file(run.folder / "checkpoints/checkpoint-6/model.safetensors")
    result = load_file(run.folder / "model/model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert {tensor.dtype for tensor in result.values()} == {torch.bfloat16}
    for name, tensor in result.items():
        assert torch.equal(tensor, saved[name].bfloat16()), name
    again = start("two", model=model | {"gradient_checkpointing": True})
    kept = start("kept", model=model | {"gradient_checkpointing": "selective"})
    some = start("some", model=model | {"gradient_checkpointing": True, "checkpointed_layers": 1})
    assert some.metrics() == kept.metrics() == again.metrics() == run.metrics() != start("three").metrics()


def test_from_scratch_every_row_of_the_embedding_learns(start, tiny_base, tmp_path, tiny_tokenizer):
    """Also the one that the shape's own tokenizer pads with: here it is a letter."""
    config = json.loads((tiny_base / "config.json").read_text())
    shape = tmp_path / "shape"
    shape.mkdir()
    (shape / "config.json").write_text(json.dumps(config | {"pad_token_id": 20, "vocab_size": 500}))
    model = {"path": str(shape), "from_scratch": True, "tokenizer": str(tiny_base)}
    run = start(model=model, train={"warmup": 0.0, "steps": 4})
    weights = [load_file(run.folder / f"checkpoints/checkpoint-{step}/model.safetensors") for step in (2, 4)]
    before, after = (tensors["model.embed_tokens.weight"] for tensors in weights)
    assert len(after) == 128 >= len(tiny_tokenizer)
    seen = {token for ids in run.prepared.train["input_ids"] for token in ids[:-1]}
    assert 20 in seen
    assert [token for token in seen if torch.equal(before[token], after[token])] == []
