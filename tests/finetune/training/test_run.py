"""A stage that is defined here alone, in a few functions: it runs to the end, and killed it goes on where it was."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from run_helpers import killed_in
from trl import SFTConfig, SFTTrainer

from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.identity import rows_digest
from hybrid_ft.finetune.training import run as training
from hybrid_ft.finetune.training.arguments import arguments
from hybrid_ft.finetune.training.plan import Plan
from hybrid_ft.finetune.training.progress import ShowProgress
from hybrid_ft.finetune.training.seams import nothing_gathered
from hybrid_ft.finetune.training.stage import Stage, Start
from hybrid_ft.finetune.training.trainer import RunTrainer


class SquaredTrainer(RunTrainer, SFTTrainer):
    """Minimises the mean square of the labels' log-probabilities: a loss of its own on one row a step."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        with nothing_gathered(self.accelerator):
            return square(model, inputs)

    def held_out(self, alone: bool = False) -> dict[str, float]:
        with self.measuring():
            losses = [float(square(self.model, self._collated(row))) for row in self.eval_dataset]
        return {"loss": sum(losses) / len(losses), "largest": max(losses)}

    def _collated(self, row: dict[str, Any]) -> dict[str, Any]:
        batch = self.data_collator([row])
        batch.pop("rows")
        return self._prepare_inputs(batch)


def square(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    return outputs.log_probs.square().sum() / outputs.label_mask.sum()


@dataclass(frozen=True)
class Rows:
    train: Dataset
    eval: Dataset | None
    eos_token_ids: list[int]
    chat_template: str
    template_arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def report(self) -> Any:
        return self

    def summary(self) -> list[str]:
        return [f"{len(self.train)} rows of its own"]

    def as_dict(self) -> dict[str, Any]:
        return {}


def prepare(recipe: Recipe, tokenizer: Any) -> Rows:
    def rows(count: int, first: int) -> Dataset:
        ids = [[4 + (first + row * column) % 70 for column in range(8)] for row in range(count)]
        columns = {
            "input_ids": ids,
            "labels": ids,
            "seq_lengths": [[8]] * count,
            "rows": [[row] for row in range(count)],
        }
        return Dataset.from_dict(columns | {"origin": [f"made-up:{row}" for row in range(count)]})

    return Rows(rows(6, 3), rows(2, 5), [3], tokenizer.chat_template)


def trainer(start: Start, model: Any, progress: ShowProgress) -> SquaredTrainer:
    args = arguments(
        SFTConfig,
        start.recipe,
        start.plan,
        start.folder,
        per_device_train_batch_size=1,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    columns = ["input_ids", "labels", "seq_lengths", "rows"]
    return SquaredTrainer(
        model,
        args,
        train_dataset=start.prepared.train.select_columns(columns),
        eval_dataset=start.prepared.eval.select_columns(columns),
        **start.of_trainer(progress),
    )


def ready(start: Start, trainer: SquaredTrainer, tried: str) -> None:
    start.say(f"ready after {tried}")


def show(start: Start, before: dict[str, Any], after: dict[str, Any]) -> None:
    start.say(f"largest {before['held_out']['largest']:.2f} -> {after['held_out']['largest']:.2f}")


MADE_UP = Stage(
    name="square",
    prepare=prepare,
    identity=lambda rows: {"rows": rows_digest([(rows.train, None)], ["input_ids"])},
    plan=lambda recipe, rows, processes: Plan.of(recipe, len(rows.train), 1),
    describe=lambda start: (f"rows      {len(start.prepared.train)}", "squares, "),
    progress=lambda console, metrics: ShowProgress(
        console,
        metrics,
        kept=("largest",),
        parts=lambda shown, left: [f"square {shown['loss']:.2f}  {left}"],
        held_out=lambda shown: f"largest {shown['eval_largest']:.2f}",
    ),
    trainer=trainer,
    trial=lambda start, trainer: "a trial",
    ready=ready,
    questions=lambda rows, tokenizer: None,
    show=show,
)


def go(base: Path, output: Path) -> tuple[int, str]:
    recipe = Recipe.model_validate(
        {
            "model": {"path": str(base)},
            "data": {"sources": [{"path": "unread.jsonl"}]},
            "train": {"epochs": 2, "learning_rate": 1e-3, "save_every": 3},
            "evaluate": {"every": 4, "samples": ["ab"], "max_new_tokens": 3},
            "output": str(output),
        }
    )
    screen = io.StringIO()
    return training.run(recipe, MADE_UP, Console(file=screen, width=200)), screen.getvalue()


@pytest.fixture(scope="module")
def whole(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run to the end and its screen."""
    folder = tmp_path_factory.mktemp("whole")
    status, screen = go(tiny_base, folder / "run")
    assert status == 0
    return folder / "run", screen


def test_to_the_end(tiny_base: Path, whole: tuple[Path, str]) -> None:
    folder, screen = whole
    for line in (
        "data      6 rows of its own",
        "rows      6",
        "training  12 steps (2.00 epochs), squares, learning rate 0.001",
        "ready after a trial",
        "step 12/12  square",
        "step 4/12  held-out largest",
        "next      talk      hybrid-ft chat",
    ):
        assert line in screen, line
    record = json.loads((folder / "run.json").read_text())
    assert record["stage"] == "square" and record["finished"]["step"] == 12
    before, after = (
        record["before"]["held_out"],
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if "eval_loss" in line],
    )
    assert after[-1]["step"] == 12 and after[-1]["eval_loss"] < before["loss"] and after[-1]["eval_largest"] > 0
    assert go(tiny_base, folder)[1].endswith("this run is finished; nothing to do\n")


@pytest.mark.parametrize("step", [*(pytest.param(step, marks=pytest.mark.slow) for step in (0, 11)), 5])
def test_killed_it_ends_as_it_would_have(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, str], step: int
) -> None:
    with killed_in(monkeypatch, SquaredTrainer, step):
        go(tiny_base, tmp_path / "cut")
    status, screen = go(tiny_base, tmp_path / "cut")
    assert status == 0 and ("going on from checkpoint-" in screen) is (step >= 3)
    result = "model/model.safetensors"
    assert (tmp_path / "cut" / result).read_bytes() == (whole[0] / result).read_bytes()
