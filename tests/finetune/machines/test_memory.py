"""The closed form of a step's memory beside its trace."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from memory_trace import trace
from shapes import cut, shape

from hybrid_ft.finetune.machines.memory import MARGIN, Batch, held, peak
from hybrid_ft.finetune.machines.shape import shape_of

EXPERTS = ("Qwen3-Next-80B-A3B", "Qwen3.5-35B-A3B")


@pytest.fixture
def differs(as_on_a_gpu: Any) -> Any:
    """Relative difference of the closed form from the trace."""

    def go(preset: str = "7B", layers: int = 4, **how: Any) -> float:
        config = cut(preset, layers)
        traced = trace(config, as_on_a_gpu=as_on_a_gpu, **{"documents": 1} | how)
        gpus, tokens = how.get("processes", 1), how["tokens"]
        prompts = how.get("documents", 1) if how.get("pairs") else 0
        labelled = 2 * prompts if how.get("scores") else tokens // 2
        batch = Batch(tokens, labelled, prompts, how.get("micro_batches", 1) > 1).over(how.get("share", 1))
        of = shape(
            config,
            how.get("lora", 0),
            how.get("targets", "all-linear"),
            how.get("optimizer", "adamw"),
            "nf4" if how.get("quantize") else None,
            how.get("dropout", 0.0),
            how.get("scores", False),
        )
        found = peak(
            of, batch, gpus // how.get("machines", 1), gpus > 1, how.get("checkpointing", True), how.get("left_out", ())
        )
        assert found.proven
        return found.total / traced.all - 1

    return go


@pytest.mark.parametrize("lora", [pytest.param(0, marks=pytest.mark.slow), 32])
def test_the_closed_form_is_the_trace(differs: Any, lora: int) -> None:
    """Far nearer than is asked of it, so that a tensor that is forgotten is seen."""
    assert abs(differs(tokens=16384, documents=4, lora=lora)) < 0.005


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, "selective", False])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize(("tokens", "processes"), [(4096, 1), (16384, 1), (16384, 8)])
def test_of_weights_in_bfloat16(
    differs: Any, tokens: int, processes: int, micro_batches: int, checkpointing: bool | str
) -> None:
    how = {"tokens": tokens, "processes": processes, "micro_batches": micro_batches, "checkpointing": checkpointing}
    assert abs(differs(optimizer="adamw_bf16", **how)) < MARGIN


@pytest.mark.slow
def test_of_muon_and_of_machines(differs: Any) -> None:
    """Muon's step makes copies of a matrix; two machines of eight hold what one does."""
    assert abs(differs(tokens=4096, optimizer="muon")) < 0.005
    assert abs(differs(tokens=16384, processes=16, machines=2, micro_batches=2)) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize("left_out", [{3}, {0, 3}, {2, 3}, {0, 1, 2, 3}], ids=str)
@pytest.mark.parametrize(("processes", "micro_batches"), [(1, 1), (1, 2), (8, 1)])
@pytest.mark.parametrize(("lora", "checkpointing"), [(0, True), (32, True), (32, "selective")])
def test_of_layers_that_checkpointing_leaves_out(
    differs: Any, lora: int, checkpointing: bool | str, processes: int, micro_batches: int, left_out: set[int]
) -> None:
    how = {"lora": lora, "checkpointing": checkpointing, "processes": processes, "micro_batches": micro_batches}
    assert abs(differs(tokens=16384, documents=4, left_out=frozenset(left_out), **how)) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, "selective", False])
@pytest.mark.parametrize("processes", [1, 2, 8])
@pytest.mark.parametrize("lora", [0, 32])
@pytest.mark.parametrize("tokens", [4096, 32768, 131072])
def test_of_the_7b(differs: Any, tokens: int, lora: int, processes: int, checkpointing: bool | str) -> None:
    how = {"tokens": tokens, "lora": lora, "processes": processes, "checkpointing": checkpointing}
    assert abs(differs(**how)) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 8])
@pytest.mark.parametrize("lora", [0, 32])
@pytest.mark.parametrize("tokens", [32768, 131072])
def test_of_inputs_in_the_hosts_memory(differs: Any, tokens: int, lora: int, processes: int) -> None:
    assert abs(differs(tokens=tokens, lora=lora, processes=processes, checkpointing="offload")) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("processes", [1, 8])
@pytest.mark.parametrize("lora", [0, 32])
def test_of_several_micro_batches_and_more_layers(differs: Any, lora: int, processes: int, micro_batches: int) -> None:
    how = {"tokens": 8192, "lora": lora, "processes": processes, "micro_batches": micro_batches}
    assert abs(differs(layers=8, **how)) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("lora", [0, 16])
@pytest.mark.parametrize("preset", ["190M", "1B"])
def test_of_other_sizes(differs: Any, preset: str, lora: int, checkpointing: bool) -> None:
    assert abs(differs(preset, 8, tokens=8192, documents=4, lora=lora, checkpointing=checkpointing)) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize("documents", [4, 32])
@pytest.mark.parametrize("lora", [0, 32])
def test_of_pairs_whose_prompt_is_shared(differs: Any, lora: int, documents: int) -> None:
    assert abs(differs(tokens=16384, documents=documents, lora=lora, pairs=True)) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("targets", ["attention", "delta", "attention+delta"])
def test_of_some_layers_adapters(differs: Any, targets: str, checkpointing: bool) -> None:
    assert abs(differs(tokens=16384, lora=32, targets=targets, checkpointing=checkpointing)) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, "selective", False])
@pytest.mark.parametrize("preset", ["7B", "Qwen3.5-9B", *EXPERTS])
def test_of_adapters_with_dropout(differs: Any, preset: str, checkpointing: bool | str) -> None:
    """Each keeps what it has not dropped; of what all of them read nobody keeps the whole."""
    assert abs(differs(preset, tokens=16384, lora=32, dropout=0.05, checkpointing=checkpointing)) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "share", "lora", "checkpointing"),
    [("7B", 4, 32, True), ("7B", 4, 0, False), ("7B", 8, 0, "offload"), ("1B", 8, 32, "selective")],
)
def test_of_tokens_that_processes_share(
    differs: Any, preset: str, share: int, lora: int, checkpointing: bool | str
) -> None:
    """In the process with the most heads: 8 of 30, 2 of 12."""
    how = {"tokens": 65536, "processes": 8, "share": share, "lora": lora, "checkpointing": checkpointing}
    assert abs(differs(preset, **how)) < MARGIN


@pytest.mark.slow
def test_of_pairs_that_processes_share(differs: Any) -> None:
    how = {"tokens": 65536, "documents": 8, "processes": 8, "share": 4, "lora": 32, "pairs": True}
    assert abs(differs(**how)) < 0.005


def test_of_shared_tokens_the_largest_share_of_heads_counts() -> None:
    """8 of 30 heads are a fifteenth more than a quarter; the rest of a layer goes by tokens."""
    layer = shape(cut("7B", 4)).layers[0]
    alone, one = Batch(8192, 4096), Batch(32768, 16384).over(4)
    assert (one.tokens, one.labelled) == (8192, 4096) and layer.heads == 30
    assert one.kept(layer) - alone.kept(layer) == 8192 * layer.by_heads // 15
    assert one.mixed(layer) - alone.mixed(layer) == 8192 * layer.mixed // 15
    assert Batch(24576, 1).over(3).kept(layer) == Batch(8192, 1).kept(layer)


def test_pieces_and_copies() -> None:
    """In pieces what is held is divided; a copy on each GPU has DDP's buckets beside it."""
    of, batch = shape(cut("190M", 4)), Batch(4096, 4096)
    one, copies, pieces = peak(of, batch), peak(of, batch, 8), peak(of, batch, 8, sharded=True)
    assert copies.total - one.total == 4 * of.trained
    assert held(of, 8, sharded=True) == -(-held(of) // 8) == -(-12 * of.trained // 8)
    assert pieces.total < one.total


@pytest.mark.parametrize(("lora", "optimizer", "bytes"), [(0, "adamw", 4), (0, "adamw_bf16", 2), (8, "adamw", 4)])
def test_a_kept_start_is_what_is_trained_once_more(lora: int, optimizer: str, bytes: int) -> None:
    of, batch = shape(cut("190M", 4), lora=lora, optimizer=optimizer), Batch(4096, 4096)
    with_start = replace(of, keeps_start=True)
    assert held(with_start) - held(of) == with_start.start == bytes * of.trained and of.start == 0
    assert peak(with_start, batch).total - peak(of, batch).total == bytes * of.trained
    pieces = [peak(one, batch, 8, sharded=True).total for one in (of, with_start)]
    assert pieces[1] - pieces[0] == bytes * of.trained // 8


def test_what_is_not_known_is_said() -> None:
    """Of another family only what is held and the layers' inputs."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        num_hidden_layers=2, hidden_size=64, intermediate_size=96, vocab_size=256, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    of = shape_of(model, config, True)
    found = peak(of, Batch(1024, 1024))
    assert not found.proven
    assert found.total >= held(of) + 2 * 1024 * 4 * 64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "checkpointing"), [(4096, "selective"), (8192, True), (16384, "offload"), (32768, True)]
)
def test_of_adapters_on_a_base_in_4_bits(differs: Any, tokens: int, checkpointing: bool | str) -> None:
    """bitsandbytes' own products, each with its matrix unpacked for the moment."""
    pytest.importorskip("bitsandbytes")
    assert abs(differs(tokens=tokens, lora=32, quantize=True, checkpointing=checkpointing)) < MARGIN


def test_of_qwen_is_the_trace(differs: Any) -> None:
    """Whose attention has a gate, and norms before it; with embeddings that are the head too."""
    assert abs(differs("Qwen3.5-4B", tokens=16384, documents=4, lora=32)) < 0.005


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, "selective", False, "offload"])
@pytest.mark.parametrize("lora", [0, 32])
@pytest.mark.parametrize("tokens", [4096, 32768])
@pytest.mark.parametrize("size", ["0.8B", "4B", "9B", "27B"])
def test_of_qwen(differs: Any, size: str, tokens: int, lora: int, checkpointing: bool | str) -> None:
    assert abs(differs(f"Qwen3.5-{size}", tokens=tokens, lora=lora, checkpointing=checkpointing)) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "micro_batches"), [(1, 2), (2, 1), (8, 1), (8, 2)])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_bf16"])
@pytest.mark.parametrize("size", ["4B", "9B"])
def test_of_qwen_in_pieces_and_micro_batches(
    differs: Any, size: str, processes: int, micro_batches: int, optimizer: str
) -> None:
    how = {"processes": processes, "micro_batches": micro_batches, "optimizer": optimizer}
    assert abs(differs(f"Qwen3.5-{size}", tokens=8192, **how)) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"lora": 32, "targets": "attention", "checkpointing": False},
        {"lora": 32, "targets": "delta"},
        {"lora": 32, "documents": 8, "pairs": True},
        {"lora": 32, "processes": 8},
        {"lora": 32, "processes": 8, "share": 4, "tokens": 65536},
        {"processes": 8, "share": 4, "checkpointing": False, "tokens": 65536},
        {"left_out": frozenset({0, 3})},
        {"optimizer": "muon"},
    ],
    ids=str,
)
def test_of_qwen_trained_otherwise(differs: Any, how: dict[str, Any]) -> None:
    assert abs(differs("Qwen3.5-9B", **{"tokens": 16384} | how)) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4B", "27B"])
@pytest.mark.parametrize(("tokens", "checkpointing"), [(4096, "selective"), (8192, True), (32768, True)])
def test_of_adapters_on_qwen_in_4_bits(differs: Any, size: str, tokens: int, checkpointing: bool | str) -> None:
    pytest.importorskip("bitsandbytes")
    assert abs(differs(f"Qwen3.5-{size}", tokens=tokens, lora=32, quantize=True, checkpointing=checkpointing)) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("lora", [0, 32])
@pytest.mark.parametrize("preset", ["7B", "Qwen3.5-4B", "Qwen3.5-9B", "Olmo-3-7B"])
def test_of_reward_models(differs: Any, preset: str, lora: int, checkpointing: bool) -> None:
    how = {"tokens": 16384, "documents": 8, "pairs": True, "scores": True}
    assert abs(differs(preset, lora=lora, checkpointing=checkpointing, **how)) < MARGIN


@pytest.mark.parametrize("preset", ["Olmo-3-7B", "Qwen3.5-35B-A3B"])
def test_of_other_families_is_the_trace(differs: Any, preset: str) -> None:
    """Windows and rope; experts under adapters."""
    assert abs(differs(preset, tokens=16384, documents=2, lora=32)) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, "selective", False])
@pytest.mark.parametrize("processes", [1, 2, 8])
@pytest.mark.parametrize("lora", [0, 32])
@pytest.mark.parametrize("tokens", [4096, 16384, 65536])
@pytest.mark.parametrize("preset", ["Olmo-2-1B", "Olmo-3-7B", "Olmo-3-32B", *EXPERTS])
def test_of_other_families(
    differs: Any, preset: str, tokens: int, lora: int, processes: int, checkpointing: bool | str
) -> None:
    how = {"tokens": tokens, "lora": lora, "processes": processes, "checkpointing": checkpointing}
    assert abs(differs(preset, **how)) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"optimizer": "adamw_bf16"},
        {"optimizer": "adamw_bf16", "processes": 8, "checkpointing": False},
        {"micro_batches": 2},
        {"micro_batches": 2, "processes": 8},
        {"lora": 32, "documents": 8, "pairs": True},
        {"lora": 32, "left_out": frozenset({0, 3})},
        {"lora": 32, "targets": "attention", "checkpointing": False},
        {"lora": 32, "checkpointing": "offload"},
        {"lora": 32, "processes": 8, "share": 2},
        {"processes": 8, "share": 2, "checkpointing": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("preset", ["Olmo-3-7B", "Olmo-3-32B", *EXPERTS])
def test_of_other_families_trained_otherwise(differs: Any, preset: str, how: dict[str, Any]) -> None:
    assert abs(differs(preset, **{"tokens": 16384} | how)) < MARGIN


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "checkpointing"), [(4096, "selective"), (8192, True), (32768, True)])
@pytest.mark.parametrize("preset", ["Olmo-3-7B", *EXPERTS])
def test_of_adapters_on_other_families_in_4_bits(
    differs: Any, preset: str, tokens: int, checkpointing: bool | str
) -> None:
    pytest.importorskip("bitsandbytes")
    assert abs(differs(preset, tokens=tokens, lora=32, quantize=True, checkpointing=checkpointing)) < MARGIN


def test_of_what_no_trace_has_proven_only_what_is_held_is_said() -> None:
    """Of adapted experts PEFT makes a copy of all a layer's for each product."""
    config = cut("Qwen3.5-35B-A3B", 1)
    assert shape(config, lora=4).proven and not shape(config, lora=4, targets="experts").proven
    config = cut("Olmo-2-1B", 1)
    assert shape(config, lora=4).proven and not shape(config, lora=4, dropout=0.1).proven
