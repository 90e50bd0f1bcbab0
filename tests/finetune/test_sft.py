"""What a run trains on, how its losses are reckoned, when it stops, and what it leaves behind."""

import itertools
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import Trainer

from hybrid_ft.hybrid_model.errors import InputError

LORA = {"lora": {"targets": "all-linear", "rank": 4, "alpha": 8, "dropout": 0.1, "merge": True}}


def plain_model(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    from transformers import OlmoHybridForCausalLM

    return OlmoHybridForCausalLM.from_pretrained(folder, dtype=dtype)


def loss_row_by_row(model: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """Mean negative log-likelihood over the trained tokens of all rows, each row alone through transformers' layers."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total = total + cross_entropy(logits.double(), labels, ignore_index=-100, reduction="sum")
        tokens += int((labels != -100).sum())
    return total / tokens


def wrap_loss(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """``change(trainer, inputs, loss)`` sees every micro-batch of the training and gives the loss that counts."""
    from hybrid_ft.finetune.sft_trainer import PackedSFTTrainer

    compute_loss = PackedSFTTrainer.compute_loss

    def wrapped(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        given = dict(inputs)
        return change(self, given, compute_loss(self, model, inputs, *args, **kwargs))

    monkeypatch.setattr(PackedSFTTrainer, "compute_loss", wrapped)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the model got in training: a micro-batch each, with its step and the rows of that step."""
    batches: list[dict[str, Any]] = []

    def spy(trainer: Any, inputs: dict[str, Any], loss: Any) -> Any:
        batches.append({"step": trainer.state.global_step + 1, "step_rows": list(trainer.counts.rows), **inputs})
        return loss

    wrap_loss(monkeypatch, spy)
    return batches


def rows_in(batch: dict[str, Any]) -> list[tuple[int, ...]]:
    """The rows of a micro-batch as the model can tell them apart."""
    ids = batch["input_ids"]
    if "cu_seq_lens_q" in batch:
        edges = batch["cu_seq_lens_q"].tolist()
        return [tuple(ids[0, a:b].tolist()) for a, b in itertools.pairwise(edges)]
    return [tuple(row[mask.bool()].tolist()) for row, mask in zip(ids, batch["attention_mask"], strict=True)]


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("packing", [True, False])
def test_every_epoch_shows_every_row_once_in_another_order(start, seen, packing):
    """13 rows, 3 micro-batches a step: neither batches nor steps divide an epoch."""
    run = start(rows=13, data={"packing": packing}, train={"accumulation": 3, "steps": None, "epochs": 3.0})
    micro_batches = len(run.prepared.packs) if packing else math.ceil(13 / 3)
    per_epoch = math.ceil(micro_batches / 3)
    assert max(run.metrics()) == 3 * per_epoch
    rows = sorted(tuple(ids) for ids in run.prepared.train["input_ids"])
    orders = []
    for epoch in range(3):
        steps = range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1)
        orders.append([row for batch in seen if batch["step"] in steps for row in rows_in(batch)])
        assert sorted(orders[-1]) == rows
    assert len({tuple(order) for order in orders}) == 3
    real = sum(len(row) for row in rows)
    slots = sum(batch["input_ids"].numel() for batch in seen)
    assert run.metrics("tokens")[3 * per_epoch] == 3 * real
    padding = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    shares = [line["padding"] for line in padding]
    if packing:
        assert slots == 3 * real and shares == [0.0] * len(shares)
    else:
        assert all(0 < share < 0.7 for share in shares)


@pytest.mark.parametrize("packing", [True, False])
def test_loss_and_gradient_are_the_mean_over_all_trained_tokens_of_the_step(start, seen, packing, steady_base):
    """Against transformers' layers in float64, one row at a time, with micro-batches of unequal numbers of tokens."""
    run = start(
        rows=10,
        model={"path": str(steady_base)},
        data={"packing": packing},
        train={"accumulation": 3, "steps": 1, "max_grad_norm": 1e9},
    )
    assert len({int((batch["labels"] != -100).sum()) for batch in seen}) == len(seen) == 3
    model = plain_model(steady_base)
    loss = loss_row_by_row(model, [run.prepared.train[row] for row in seen[0]["step_rows"]])
    loss.backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert run.metrics()[1] == pytest.approx(loss.item(), rel=1e-5)
    assert run.metrics("grad_norm")[1] == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize("packing", [True, False])
def test_held_out_loss_is_that_of_each_row_alone(start, packing, steady_base):
    run = start(
        rows=6,
        held_out=7,
        model={"path": str(steady_base)},
        data={"packing": packing},
        train={"steps": 2},
        evaluate={"every": 1},
    )
    rows = list(run.prepared.eval)
    record = json.loads((run.folder / "run.json").read_text())
    with torch.no_grad():
        before = loss_row_by_row(plain_model(steady_base), rows).item()
        after = loss_row_by_row(plain_model(run.folder / "model"), rows).item()
    assert record["before"]["held_out_loss"] == pytest.approx(before, rel=1e-5)
    assert run.metrics("eval_loss")[2] == pytest.approx(after, rel=1e-5)
    assert f"{before:.4f}" in run.screen and f"{after:.4f}" in run.screen


def test_evaluating_does_not_change_the_training(start):
    with_dropout = start("one", held_out=5, evaluate={"every": 1, "answers": 2, "samples": ["ab"]})
    without = start("two")
    assert with_dropout.metrics() == without.metrics()


def test_what_is_measured_before_is_not_measured_again(start, monkeypatch):
    from hybrid_ft.finetune import sft

    class Killed(BaseException):
        pass

    calls: list[int] = []
    answer_held_out = sft.evaluate.answer_held_out

    def counted(*args: Any) -> Any:
        calls.append(1)
        return answer_held_out(*args)

    def killed(trainer: Any, inputs: Any, loss: Any) -> Any:
        raise Killed

    monkeypatch.setattr(sft.evaluate, "answer_held_out", counted)
    sections = {"held_out": 4, "evaluate": {"answers": 3, "samples": ["hello"]}}
    with monkeypatch.context() as patched, pytest.raises(Killed):
        wrap_loss(patched, killed)
        start(**sections)
    assert calls == [1]
    run = start(**sections)
    assert calls == [1, 1]
    lines = {
        name: (run.folder / f"{name}.jsonl").read_text().splitlines() for name in ("answers-before", "answers-after")
    }
    assert [len(rows) for rows in lines.values()] == [3, 3]
    assert json.loads(lines["answers-before"][0])["origin"] == "held.jsonl:1"
    assert "exact answers" in run.screen and "hello" in run.screen


def test_answers_are_exact_or_not(monkeypatch):
    from datasets import Dataset

    from hybrid_ft.finetune import evaluate
    from hybrid_ft.finetune.recipe import Evaluate

    asked: list[Any] = []

    def answer(model: Any, tokenizer: Any, prompts: Any, end_ids: list[int], max_new_tokens: int) -> list[str]:
        asked.append((list(prompts), end_ids, max_new_tokens))
        return [" right\n", "wrong"]

    monkeypatch.setattr(evaluate, "answer", answer)
    rows = Dataset.from_dict(
        {
            "prompt_ids": [[index] for index in range(5)],
            "answer": ["right"] * 5,
            "origin": [f"held.jsonl:{index}" for index in range(5)],
        }
    )
    answers = evaluate.answer_held_out(None, None, rows, [9], Evaluate(answers=2, max_new_tokens=7))
    assert asked == [([[0], [2]], [9], 7)]
    assert [(row["origin"], row["exact"]) for row in answers] == [("held.jsonl:0", True), ("held.jsonl:2", False)]


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_number_that_is_none_stops_the_run_before_the_step(start, tmp_path, monkeypatch, what):
    """In the second micro-batch of step 4; the optimizer has taken 3 steps then, and takes no other."""
    of_step: list[list[tuple[int, ...]]] = []

    def spoil(trainer: Any, inputs: dict[str, Any], loss: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step != 3:
            return loss
        of_step.append(rows_in(inputs))
        if len(of_step) < 2:
            return loss
        if what == "gradient norm":
            loss.register_hook(lambda gradient: gradient * float("inf"))
            return loss
        return loss * float("nan")

    stepped: list[int] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *args: stepped.append(1) or step(self, *args))
    wrap_loss(monkeypatch, spoil)
    with pytest.raises(InputError, match=f"step 4: the {what} is (nan|inf)") as caught:
        start(train={"accumulation": 2, "save_every": 1, "steps": 8})
    assert caught.value.status == 4 and len(stepped) == 3
    named = json.loads((tmp_path / "run/not-finite-step-4.json").read_text())["rows"]
    by_origin = {row["origin"]: tuple(row["input_ids"]) for row in start.prepared.train}
    assert [by_origin[name] for name in named] == [row for rows in of_step for row in rows]
    assert named[0] in str(caught.value) and "checkpoint-3" in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-3"]
    weights = load_file(tmp_path / "run/checkpoints/checkpoint-3/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert not (tmp_path / "run/model").exists()


@pytest.mark.parametrize(("in_a_row", "status"), [(2, 0), (4, 4)])
def test_an_overflow_in_bfloat16_is_left_out_and_counted(start, monkeypatch, in_a_row, status):
    """One infinite gradient norm is no step; more than three in a row are no accident."""
    before: dict[int, list[torch.Tensor]] = {}

    def spoil(trainer: Any, inputs: dict[str, Any], loss: torch.Tensor) -> torch.Tensor:
        step = trainer.state.global_step + 1
        before[step] = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        if 3 <= step < 3 + in_a_row:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    wrap_loss(monkeypatch, spoil)
    # infinity times a gradient of zero is no number; here every weight's gradient is infinite
    monkeypatch.setattr(Trainer, "_get_grad_norm", lambda self, model, grad_norm=None: overflow(grad_norm))
    if status:
        with pytest.raises(InputError, match="step 6: the gradient norm is inf") as caught:
            start(model={"dtype": "bfloat16"}, train={"steps": 8, "learning_rate": 1e-3})
        assert caught.value.status == status
        return
    run = start(model={"dtype": "bfloat16"}, train={"steps": 8, "learning_rate": 1e-3})
    assert run.status == 0
    assert run.metrics("skipped") == {3: 1, 4: 1}
    assert sorted(run.metrics("grad_norm")) == [1, 2, 5, 6, 7, 8]
    assert all(torch.equal(one, other) for one, other in zip(before[3], before[5], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(before[5], before[6], strict=True))


def overflow(norm: torch.Tensor) -> torch.Tensor:
    """What a bfloat16 sum of squares makes of huge gradients, where float32 has a NaN from a zero among them."""
    return torch.full_like(norm, float("inf")) if torch.isnan(norm) else norm


def test_a_signal_before_training_leaves_nothing(start, tmp_path, monkeypatch):
    from hybrid_ft.finetune import sft

    monkeypatch.setattr(sft.stage, "load_model", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    run = start()
    assert run.status == 75
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_exporting_is_resumable(start, monkeypatch):
    from hybrid_ft.finetune.export import Exporter

    with monkeypatch.context() as patched:
        patched.setattr(Exporter, "whole", lambda *args: os.kill(os.getpid(), signal.SIGINT))
        assert start().status == 75
    again = start()
    assert again.status == 0 and "going on from checkpoint-6" in again.screen


def test_signals_are_the_callers_again_afterwards(start):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    start(train={"steps": 1})
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_an_ignored_signal_stays_ignored():
    """As under nohup."""
    from hybrid_ft.finetune.stopping import StopRequest

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.now
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_signal_ends_the_process_at_once():
    from hybrid_ft.finetune.stopping import StopRequest

    child = os.fork()
    if child == 0:
        with StopRequest().listening() as stop, stop.at_step_ends():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.now
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGINT


def test_full_result_opens_in_plain_transformers(start, tiny_tokenizer):
    from transformers import AutoTokenizer, GenerationConfig, OlmoHybridForCausalLM

    run = start(train={"weight_decay": 0.1, "schedule": "cosine"})
    folder = run.folder / "model"
    _, info = OlmoHybridForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(folder).chat_template == tiny_tokenizer.chat_template
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == [3, 0] and generation.pad_token_id == tiny_tokenizer.pad_token_id
    files = tree(run.folder)
    assert {"recipe.yaml", "run.json", "metrics.jsonl"} <= files
    odd = [name for name in files if name.endswith((".bin", ".md", ".pkl")) or ".staging" in name]
    assert odd == []
    assert f"next: hybrid-ft chat {folder}" in run.screen


def test_lora_results_open_with_peft_on_plain_transformers(start, tiny_base):
    from peft import PeftModel
    from transformers import GenerationConfig

    run = start(model=LORA)
    opened = PeftModel.from_pretrained(plain_model(tiny_base, torch.float32), run.folder / "adapter").eval()
    merged = plain_model(run.folder / "merged", torch.float32).eval()
    base = plain_model(tiny_base, torch.float32).eval()
    ids = torch.tensor([[5, 9, 33, 60, 12, 8, 7]])
    with torch.no_grad():
        with_adapter, folded, without = (model(ids, use_cache=False).logits for model in (opened, merged, base))
    assert (with_adapter - folded).norm() < 1e-5 * folded.norm()
    assert (with_adapter - without).norm() > 1e-2 * without.norm()
    config = json.loads((run.folder / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_base)
    assert GenerationConfig.from_pretrained(run.folder / "adapter").eos_token_id == [3, 0]
    assert not (run.folder / "adapter/README.md").exists() and not (run.folder / "model").exists()
    frozen = [name for name in load_file(run.folder / "adapter/adapter_model.safetensors") if "lora" not in name]
    assert frozen == []


def test_weight_decay_is_for_matrices(tiny_base):
    import hybrid_ft
    from hybrid_ft.finetune.sft_trainer import PackedSFTTrainer

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
    from hybrid_ft.finetune import sft

    made: list[Any] = []
    arguments = sft.arguments
    monkeypatch.setattr(sft, "arguments", lambda *args, **kwargs: made.append(arguments(*args, **kwargs)) or made[-1])
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
    assert again.metrics() == run.metrics() != start("three").metrics()


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
