"""Steps and trainers of stages on pairs, prepared ones or a stream's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hybrid_ft.finetune.data.streaming.prepared import StreamPrepared
from hybrid_ft.finetune.runs.identity import ends_digest
from hybrid_ft.finetune.training.pair_steps import prompts_to_keep, steps_of_pairs
from hybrid_ft.finetune.training.plan import Plan
from hybrid_ft.finetune.training.streamed import StreamParts

if TYPE_CHECKING:
    from collections.abc import Callable

    from hybrid_ft.finetune.recipe.schema import Recipe
    from hybrid_ft.finetune.training.progress import ShowProgress
    from hybrid_ft.finetune.training.stage import Start


def plan_of_pairs(recipe: Recipe, pairs: Any, pairs_per_step: int) -> Plan:
    """A step is its pairs, however many processes share them."""
    if recipe.data.streaming:
        return Plan.of_stream(recipe)
    return Plan.of(recipe, len(pairs.train), pairs_per_step)


def is_streamed(pairs: Any) -> bool:
    """Whether these, with what was prepared in ``kept``, are a stream's sample."""
    return isinstance(pairs.kept, StreamPrepared)


def digest_of_files(pairs: Any) -> dict[str, str]:
    """What tells a stream's files from others, by the name under which a run keeps it; nothing of pairs that are there
    whole."""
    return {"files": ends_digest(pairs.kept.files)} if is_streamed(pairs) else {}


def trainer_of_pairs(
    start: Start,
    model: Any,
    progress: ShowProgress,
    args: Any,
    pairs_per_step: int,
    whole: Callable[..., Any],
    streamed: Callable[..., Any],
) -> Any:
    """What ``whole``, a class of trainers, makes of prepared pairs and ``streamed`` of a stream; ``args``: TRL's."""
    recipe, pairs = start.recipe, start.prepared
    common = start.of_trainer(progress) | {
        "args": args,
        "train_dataset": pairs.train,
        "eval_dataset": pairs.eval,
        "pairs_per_step": pairs_per_step,
        "batch_tokens": recipe.train.batch_tokens,
    }
    if is_streamed(pairs):
        # a stream's rows are named by their origins
        return streamed(model, **common | {"origins": str}, steps=StreamParts(pairs.kept.open, steps_of_pairs))
    return whole(model, **common, prompts=prompts_to_keep(recipe, pairs.train))
