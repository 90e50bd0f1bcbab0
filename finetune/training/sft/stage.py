"""Supervised fine-tuning (SFT): from a recipe to a saved model.

TRL's SFTTrainer trains.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from rich.console import Console
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from hybrid_ft.finetune.data.prepare import Prepared
from hybrid_ft.finetune.data.streaming.prepared import StreamPrepared, prepare
from hybrid_ft.finetune.evaluation import answers
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.identity import ends_digest, rows_digest
from hybrid_ft.finetune.training import run as training
from hybrid_ft.finetune.training.arguments import arguments
from hybrid_ft.finetune.training.packs import FILLER, packs_dataset
from hybrid_ft.finetune.training.plan import Plan, a_step
from hybrid_ft.finetune.training.progress import ShowProgress
from hybrid_ft.finetune.training.sft.streamed import StreamedSFTTrainer, StreamSteps
from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer
from hybrid_ft.finetune.training.stage import Stage, Start
from hybrid_ft.finetune.training.stuck_loss import StuckLoss


def run(recipe: Recipe, console: Console, accept_changes: bool = False, extend: bool = False) -> int:
    """As ``training.run.run``."""
    return training.run(recipe, SFT, console, accept_changes, extend)


def _identity(prepared: Prepared) -> dict[str, str]:
    """The tokens, labels, weights and packs of every row, in order."""
    parts = [(prepared.train, prepared.packs), (prepared.eval, prepared.eval_packs)]
    weights = ["weights"] if any(rows is not None and _weighted(rows) for rows, _ in parts) else []
    of_files = {"files": ends_digest(prepared.files)} if isinstance(prepared, StreamPrepared) else {}
    return {"rows": rows_digest(parts, ("input_ids", "labels", *weights))} | of_files


def _weighted(rows: Dataset) -> bool:
    """Whether a token of theirs weighs other than 1 in the loss."""
    if "weights" not in rows.column_names:
        return False
    tables = rows.select_columns(["weights"]).with_format("arrow").iter(10_000)
    return any(pc.sum(pc.list_value_length(table["weights"])).as_py() for table in tables)


def _micro_batches(recipe: Recipe, prepared: Prepared) -> int:
    """Of an epoch, over all processes."""
    return (
        len(prepared.packs) if prepared.packs is not None else math.ceil(len(prepared.train) / recipe.train.batch_size)
    )


def plan_of(recipe: Recipe, prepared: Prepared, processes: int = 1) -> Plan:
    """A step is its packs, or its rows, however many processes share them."""
    if recipe.data.streaming:
        return Plan.of_stream(recipe)
    return Plan.of(recipe, _micro_batches(recipe, prepared), a_step(recipe))


def _describe(start: Start) -> tuple[str, str]:
    recipe, train = start.recipe, start.recipe.train
    if recipe.data.streaming:
        return _describe_stream(start), ""
    columns = start.prepared.train.with_format("arrow").iter(10_000)
    tokens = sum(pc.sum(pc.list_value_length(table["input_ids"])).as_py() for table in columns)
    portion = (
        f"packs of at most {train.batch_tokens:,} tokens"
        if recipe.data.packing
        else f"batches of {train.batch_size} rows"
    )
    count, per_epoch = a_step(recipe), start.plan.per_epoch
    portions = (
        f"batches   {_micro_batches(recipe, start.prepared):,} {portion}, {count} a step: "
        f"about {tokens / per_epoch:,.0f} tokens a step, {per_epoch:,} steps an epoch"
    )
    return portions + _idle(start), ""


def _describe_stream(start: Start) -> str:
    recipe, train, count = start.recipe, start.recipe.train, a_step(start.recipe)
    portion = (
        f"packs of at most {train.batch_tokens:,} tokens"
        if recipe.data.packing
        else f"batches of {train.batch_size} rows"
    )
    return f"batches   {portion}, {count} a step, of {recipe.data.shuffle_buffer:,} shuffled rows at a time" + _idle(
        start
    )


def _idle(start: Start) -> str:
    """That processes wait, where they do."""
    recipe, count, processes = start.recipe, a_step(start.recipe), start.team.count
    if count % processes:
        key = "tokens_per_step" if recipe.data.packing else "rows_per_step"
        idle, who = -count % processes, "processes" if start.team.size == 1 else "teams"
        return (
            f"\n          {idle} of {processes} {who} wait at the end of each step: the number of its micro-batches, {count}, "
            f"is not a multiple of {processes}; train.{key} sets it"
        )
    return ""


def show_progress(console: Console, metrics: Path) -> ShowProgress:
    """``tokens`` of a held-out measure are the trained ones."""
    return ShowProgress(console, metrics, kept=("tokens",), parts=_parts, held_out=_held_out)


def _parts(shown: dict[str, float], left: str) -> list[str]:
    numbers = f"loss {shown['loss']:.4f}  lr {shown['learning_rate']:.2e}  {shown['tokens_per_s']:,.0f} tokens/s"
    return [f"{numbers}  padding {shown['padding']:.0%}  {left}"]


def _held_out(shown: dict[str, float]) -> str:
    return f"loss {shown['eval_loss']:.4f}"


def sft_arguments(recipe: Recipe, plan: Plan, folder: RunFolder, processes: int = 1) -> SFTConfig:
    """TRL's. Rows come as they are to be trained on: nothing is cut, masked or packed anew."""
    packing, rows = recipe.data.packing, recipe.train.batch_size
    return arguments(
        SFTConfig,
        recipe,
        plan,
        folder,
        # a micro-batch is one pack; TRL keeps its rows apart when it believes to have packed them
        packing=packing,
        packing_strategy="bfd",
        eval_packing=packing,
        per_device_train_batch_size=1 if packing else rows,
        per_device_eval_batch_size=1 if packing else rows,
        gradient_accumulation_steps=math.ceil(a_step(recipe) / processes),
        # a stream goes on from its own state
        ignore_data_skip=recipe.data.streaming,
        dataset_kwargs={"skip_prepare_dataset": True},
        completion_only_loss=False,
    )


def _trainer(start: Start, model: Any, progress: ShowProgress) -> PackedSFTTrainer:
    prepared = start.prepared
    filler = [[FILLER]] if start.folder.processes.count > 1 else []
    train = packs_dataset(prepared.train, _packs(prepared.train, prepared.packs) + filler)
    held_out = (
        None
        if prepared.eval is None
        else packs_dataset(prepared.eval, _packs(prepared.eval, prepared.eval_packs) + filler)
    )
    recipe, team = start.recipe, start.team
    common = {
        "args": sft_arguments(recipe, start.plan, start.folder, team.count),
        "train_dataset": train,
        "eval_dataset": held_out,
        "a_step": a_step(recipe),
    } | start.of_trainer(progress)
    if isinstance(prepared, StreamPrepared):
        steps = StreamSteps(prepared.open, a_step(recipe), team, recipe.data.packing)
        # whether a weight is to come is not known; a stream's rows are named by their origins
        common |= {"weighted": True, "origins": str}
        return StreamedSFTTrainer(model, **common, steps=steps)
    return PackedSFTTrainer(model, **common, weighted=_weighted(prepared.train))


def _packs(rows: Dataset, packs: list[list[int]] | None) -> list[list[int]]:
    return [[row] for row in range(len(rows))] if packs is None else packs


def _ready(start: Start, trainer: PackedSFTTrainer, tried: None) -> None:
    trainer.add_callback(StuckLoss(start.say))


def _questions(prepared: Prepared, tokenizer: PreTrainedTokenizerBase) -> Dataset | None:
    return prepared.eval


def _show(start: Start, before: dict[str, Any], after: dict[str, Any]) -> None:
    losses = [(measured["held_out"] or {}).get("loss") for measured in (before, after)]
    answers.show(start.console, before | {"loss": losses[0]}, after | {"loss": losses[1]})


SFT = Stage(
    name="sft",
    prepare=prepare,
    identity=_identity,
    plan=plan_of,
    describe=_describe,
    progress=show_progress,
    trainer=_trainer,
    trial=lambda start, trainer: None,
    ready=_ready,
    questions=_questions,
    show=_show,
    late=True,
)
