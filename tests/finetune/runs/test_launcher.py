"""What a launcher asks for and the recipe does not is refused in a line that names both; nothing is half obeyed."""

import os
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.schema import Recipe, changed
from hybrid_ft.finetune.runs.launcher import agreed, elastic_note


def recipe(**sections: Any) -> Recipe:
    raw: dict[str, Any] = {"model": {"path": "tiny"}, "data": {"sources": [{"path": "rows.jsonl"}]}}
    for key, values in sections.items():
        raw[key] = raw.get(key, {}) | values
    return Recipe.model_validate(raw)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("said", "dtype", "refused"),
    [
        (
            "bf16",
            "float32",
            "ACCELERATE_MIXED_PRECISION is bf16 and model.dtype is float32; set model.dtype: bfloat16, or",
        ),
        ("bf16", "auto", "ACCELERATE_MIXED_PRECISION is bf16 and model.dtype is auto, which is float32 here"),
        (
            "fp16",
            "bfloat16",
            "ACCELERATE_MIXED_PRECISION is fp16 and model.dtype is bfloat16; start with --mixed_precision no",
        ),
        ("fp8", "float32", "ACCELERATE_MIXED_PRECISION is fp8 and model.dtype is float32"),
        ("bf16", "bfloat16", None),
        ("no", "bfloat16", None),
        ("no", "float32", None),
    ],
)
def test_mixed_precision(monkeypatch: pytest.MonkeyPatch, said: str, dtype: str, refused: str | None) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", said)
    wanted = recipe(model={"dtype": dtype})
    if refused is None:
        assert agreed(wanted, dtype == "bfloat16") is wanted
        return
    with pytest.raises(InputError) as error:
        agreed(wanted, dtype == "bfloat16")
    assert str(error.value).startswith(refused) and error.value.status == 3 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed is not used here; train.sharded: true"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM is not used here"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "a parallelism config is not used here"),
        ("ACCELERATE_TORCH_DEVICE", "cuda:1", "is cuda:1: each process takes its own GPU here"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "is INDUCTOR: a model is not compiled here"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "is 4 and the recipe says how large a step is"),
        ("ACCELERATE_GRADIENT_CLIPPING", "0.5", "is 0.5 and train.max_grad_norm is 1"),
    ],
)
def test_what_is_not_done_here(monkeypatch: pytest.MonkeyPatch, name: str, value: str, refused: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{name} .*{refused}"):
        agreed(recipe(), False)


def test_all_of_it_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(InputError) as error:
        agreed(recipe(), False)
    assert len(str(error.value).splitlines()) == 2


def test_what_accelerate_says_by_itself_is_no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its launcher sets all of these where its user has said nothing."""
    for name, value in {
        "ACCELERATE_USE_CPU": "False",
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "1",
        "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_OFFLOAD_PARAMS": "false",
        "FSDP_MIN_NUM_PARAMS": "100000000",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
        "FSDP_SYNC_MODULE_STATES": "true",
        "FSDP_ACTIVATION_CHECKPOINTING": "false",
    }.items():
        monkeypatch.setenv(name, value)
    given = recipe()
    found = agreed(given, False)
    assert found.train.sharded  # --use_fsdp is a wish
    assert found == changed(given, "train", sharded=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FSDP_OFFLOAD_PARAMS", "true"),
        ("FSDP_SHARDING_STRATEGY", "SHARD_GRAD_OP"),
        ("FSDP_RESHARD_AFTER_FORWARD", "false"),
        ("FSDP_IGNORED_MODULES", "lm_head"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true"),
    ],
)
def test_settings_of_fsdp_count_only_with_it(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    agreed(recipe(), False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=f"^{name} is {value}"):
        agreed(recipe(), False)


def test_use_fsdp_is_a_sharded_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate is not told, or it would divide the model in its own way; the recipe given stays as it is."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    wanted = recipe()
    assert agreed(wanted, False).train.sharded and not wanted.train.sharded
    assert "ACCELERATE_USE_FSDP" not in os.environ


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_run_that_disagrees_does_not_begin(
    start: Any, start_pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(InputError, match="ACCELERATE_MIXED_PRECISION is bf16 and model.dtype is float32"):
        (start if stage == "sft" else start_pairs)(model={"dtype": "float32"})
    assert not list(tmp_path.iterdir())


def test_a_launcher_on_a_cpu_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from hybrid_ft.finetune.runs import device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.kind() == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert device.kind() == "cpu"


def test_torchrun_is_said_to_lose_statuses_and_long_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert elastic_note("runs/mine") == ""  # hybrid-ft launch, or none
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert "hybrid-ft status runs/mine tells it" in elastic_note("runs/mine")
    assert "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=3600" in elastic_note("runs/mine")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    assert "tells it" in elastic_note("runs/mine") and "kills" not in elastic_note("runs/mine")
