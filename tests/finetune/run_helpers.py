"""What tests of training share: an adapter, transformers' own model, and a hand on the loss of every micro-batch."""

import itertools
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

Tokens = Callable[[int, int], list[int]]
"""Random ones, at least and at most so many."""

LORA = {"lora": {"targets": "all-linear", "rank": 4, "alpha": 8, "dropout": 0.1, "merge": True}}
LORA_ALONE = {"lora": {"targets": "all-linear", "rank": 4, "alpha": 8, "merge": True}}
# Slow, all of them: such steps are resumed as DPO's are, whose tests are fast.
RESUMED_IN_EACH_WAY = pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=pytest.mark.slow)
        for model in ({}, LORA_ALONE, {"dtype": "bfloat16"}, LORA_ALONE | {"dtype": "bfloat16"})
    ],
    ids=["full", "lora", "bf16", "bf16-lora"],
)


def plain_model(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    from transformers import OlmoHybridForCausalLM

    return OlmoHybridForCausalLM.from_pretrained(folder, dtype=dtype)


def gradients(model: torch.nn.Module) -> torch.Tensor:
    """All of them in one row, by name."""
    return torch.cat([p.grad.double().flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None])


def our_step(trainer: Any) -> tuple[float, torch.Tensor]:
    """The loss and the gradients of a step on all of a trainer's rows."""
    trainer.model.zero_grad()
    step = trainer.data_collator(list(trainer.train_dataset))
    return float(trainer.training_step(trainer.model, step)), gradients(trainer.model)


def copied(run: Path, output: Path) -> Path:
    """A run's folder as if it had been made at ``output``."""
    shutil.copytree(run, output)
    recipe = output / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(run), str(output)))
    return output


def wrap_loss(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """``change(trainer, inputs, loss)`` sees every micro-batch of the training and gives the loss that counts."""
    from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer

    compute_loss = PackedSFTTrainer.compute_loss

    def wrapped(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        given = dict(inputs)
        return change(self, given, compute_loss(self, model, inputs, *args, **kwargs))

    monkeypatch.setattr(PackedSFTTrainer, "compute_loss", wrapped)


@contextmanager
def stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[None]:
    """Inside the block a run of SFT gets SIGTERM in the step behind so many."""

    def end(trainer: Any, inputs: Any, loss: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    with monkeypatch.context() as patched:
        wrap_loss(patched, end)
        yield


def rows_in(batch: dict[str, Any]) -> list[tuple[int, ...]]:
    """The rows of a micro-batch as the model can tell them apart."""
    ids = batch["input_ids"]
    if "cu_seq_lens_q" in batch:
        edges = batch["cu_seq_lens_q"].tolist()
        return [tuple(ids[0, a:b].tolist()) for a, b in itertools.pairwise(edges)]
    return [tuple(row[mask.bool()].tolist()) for row, mask in zip(ids, batch["attention_mask"], strict=True)]


class Killed(BaseException):
    """The end of the process, as the code sees it."""


@contextmanager
def killed_in(monkeypatch: pytest.MonkeyPatch, trainer: type, after: int) -> Iterator[None]:
    """Inside the block, which its death leaves, a run of ``trainer`` is killed in the step behind so many."""
    compute_loss = trainer.compute_loss  # type: ignore[attr-defined]

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == after and self.optimizer is not None:
            raise Killed
        return compute_loss(self, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(trainer, "compute_loss", dying)
        yield


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    """Of every step that was logged."""
    return [line["loss"] for line in lines(folder) if "loss" in line]


def quickstart_recipe(folder: Path, root: Path, rows: int, model: str, train: str) -> None:
    """``r.yaml`` in the folder: four steps on the quickstart's first ``rows``, with these keys
    of ``model`` and ``train``."""
    text = (root / "datasets/quickstart/train.jsonl").read_text().splitlines()[:rows]
    (folder / "rows.jsonl").write_text("\n".join(text) + "\n")
    (folder / "r.yaml").write_text(
        f"model: {{{model}}}\ndata: {{sources: [{{path: rows.jsonl}}], max_length: 192}}\n"
        f"train: {{steps: 4, batch_tokens: 384, learning_rate: 1.0e-3, save_every: 2, keep: 9, {train}}}\n"
    )


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the machine."""
    return [{k: v for k, v in line.items() if k not in ("tokens_per_s", "seconds", "memory")} for line in lines(folder)]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, trainer: type, step: int, how: str) -> None:
    """In the second micro-batch of that step of ``trainer``: a signal, or ``kill``."""
    compute_loss = trainer.compute_loss  # type: ignore[attr-defined]
    seen: list[int] = []

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.state.global_step + 1)
        if self.optimizer is not None and seen.count(step) == 2 and seen[-1] == step:
            if how == "kill":
                raise Killed
            os.kill(os.getpid(), getattr(signal, how))
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", interrupted)


def resumed_and_whole(
    monkeypatch: pytest.MonkeyPatch, start: Callable[..., Any], trainer: type, **more: Any
) -> tuple[Path, Path]:
    """A run that was killed in step 4, stopped in step 5 and gone on with, and one that was not; saves
    are every second step.

    Their metrics and the weights in them are the same.
    """
    whole = start("whole", **more)
    assert whole.status == 0
    with monkeypatch.context() as patched:
        interrupt_at(patched, trainer, 4, "kill")
        with pytest.raises(Killed):
            start("cut", **more)
    with monkeypatch.context() as patched:
        interrupt_at(patched, trainer, 5, "SIGTERM")
        stopped = start("cut", **more)
    assert stopped.status == 75 and "going on from checkpoint-2" in stopped.screen
    resumed = start("cut", **more)
    assert resumed.status == 0 and "going on from checkpoint-5" in resumed.screen
    assert timeless(resumed.folder) == timeless(whole.folder)
    saved = [path for path in whole.folder.glob("*/*.safetensors") if path.parent.name != "reference"]
    assert saved
    for path in saved:
        assert path.read_bytes() == (resumed.folder / path.relative_to(whole.folder)).read_bytes(), path
    return resumed.folder, whole.folder


def random_rows(count: int, seed: int, name: str, row_of: Callable[[random.Random, Tokens], dict[str, Any]]) -> Any:
    """What ``prepare`` gives: prompts of 1 to 30 tokens, every fourth one the one before, and what
    ``row_of`` adds to each."""
    from datasets import Dataset

    chance = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [chance.randrange(4, 80) for _ in range(chance.randint(low, high))]

    rows: list[dict[str, Any]] = []
    for index in range(count):
        prompt = rows[-1]["prompt_ids"] if index % 4 == 3 else tokens(1, 30)
        rows.append({"prompt_ids": prompt} | row_of(chance, tokens) | {"origin": f"{name}:{index + 1}"})
    return Dataset.from_list(rows)


def move(model: torch.nn.Module, by: float) -> None:
    """Add noise to every trained weight, the same for the same names."""
    for name, parameter in model.named_parameters():
        if by and parameter.requires_grad:
            generator = torch.Generator().manual_seed(sum(name.encode()))
            parameter.data += by * torch.randn(parameter.shape, generator=generator)


def refused_keys(folder: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> list[str]:
    """The complaints about a recipe of the base tiny with these keys of ``model``."""
    from hybrid_ft.errors import InputError
    from hybrid_ft.finetune.recipe.load import load_recipe

    monkeypatch.chdir(folder)
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "a").mkdir()
    (folder / "r.yaml").write_text(f"model: {{path: tiny, {model}}}\ndata: {{sources: [{{path: rows.jsonl}}]}}\n")
    with pytest.raises(InputError) as refused:
        load_recipe("r.yaml", [])
    return str(refused.value).splitlines()
