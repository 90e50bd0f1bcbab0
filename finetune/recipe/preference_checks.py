"""Contradictions in a recipe of a preference stage: dpo, kto, reward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hybrid_ft.errors import shown
from hybrid_ft.finetune.recipe.losses import LOSSES
from hybrid_ft.finetune.recipe.mistakes import Wrong
from hybrid_ft.finetune.recipe.stage_kinds import PREFERENCE, STAGE_KINDS

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.preference_section import Kto
    from hybrid_ft.finetune.recipe.schema import Dpo, Recipe


def preference_contradictions(recipe: Recipe, stage: str | None) -> Iterator[Wrong]:
    """Values that are fine alone and wrong together. ``stage``: the command that is to run it, None
    where it is open."""
    sections = [name for name in PREFERENCE if getattr(recipe, name) is not None]
    for name in sections:
        if stage is not None and name != stage:
            yield Wrong(
                (name,),
                f"this recipe is for {STAGE_KINDS[name].purpose}; run it with hybrid-ft {name}, or remove the section",
            )
    if stage is None and len(sections) > 1:
        yield Wrong((sections[1],), f"got {' and '.join(sections)}; a recipe is one stage, keep one of them")
    if recipe.dpo is not None:
        yield from _of_dpo(recipe.dpo)
    if recipe.kto is not None:
        yield from _of_kto(recipe.kto)
    if recipe.reward is not None:
        yield from _of_reward(recipe)
    if sections:
        yield from _of_any(recipe, sections[0])


def _of_dpo(dpo: Dpo) -> Iterator[Wrong]:
    loss = LOSSES[dpo.loss]
    if dpo.beta > 1 and not loss.normalised:
        yield Wrong(
            ("dpo", "beta"),
            f"got {dpo.beta:g} with loss {dpo.loss}, which adds up an answer's log-probabilities: hundreds of tokens "
            "times a beta above 1 saturate it. Use 0.1 or so, or loss: sigmoid_norm, which is per token",
            (("dpo", "loss"),),
        )
    if dpo.label_smoothing and loss.smoothing == "none":
        takers = ", ".join(name for name, other in LOSSES.items() if other.smoothing != "none")
        yield Wrong(
            ("dpo", "label_smoothing"),
            f"got {dpo.label_smoothing:g}; {dpo.loss} takes none, use one of {takers}",
            (("dpo", "loss"),),
        )
    if loss.smoothing == "needed" and not dpo.label_smoothing:
        yield Wrong(("dpo", "label_smoothing"), f"must be above 0 for {dpo.loss}; 0.001 is usual", (("dpo", "loss"),))


def _of_kto(kto: Kto) -> Iterator[Wrong]:
    if not kto.desirable_weight and not kto.undesirable_weight:
        yield Wrong(("kto", "undesirable_weight"), "got 0; must be above 0 where kto.desirable_weight is 0")
    if kto.has_kl and kto.rows_per_step < 2:
        yield Wrong(
            ("kto", "rows_per_step"),
            f"got {kto.rows_per_step}; must be at least 2 for loss kto, whose KL term is measured on a step's answers put to "
            "each other's prompts; 16 or more is usual",
            (("kto", "loss"),),
        )


def _of_reward(recipe: Recipe) -> Iterator[Wrong]:
    """What asks for words of a model that gives scores."""
    model, evaluate = recipe.model, recipe.evaluate
    for key, got in (("answers", evaluate.answers), ("samples", evaluate.samples)):
        if got:
            yield Wrong(("evaluate", key), f"got {shown(got)}; a reward model writes no answers, leave it out")
    if evaluate.suite is not None:
        yield Wrong(("evaluate", "suite"), "is there; a reward model writes no answers, leave it out")
    if model.from_scratch:
        yield Wrong(("model", "from_scratch"), "got true; a reward model needs trained weights under its new head")
    for key in ("new_tokens", "new_special_tokens"):
        if got := getattr(model, key):
            yield Wrong(("model", key), f"got {shown(got)}; no model that it is to score has them, leave them out")


def _of_any(recipe: Recipe, section: str) -> Iterator[Wrong]:
    train, lora = recipe.train, recipe.model.lora
    rows, key_of_step = STAGE_KINDS[section].rows, f"{section}.{STAGE_KINDS[section].per_step}"
    a_step = recipe.pairs_or_rows
    for key, got in (("tokens_per_step", train.tokens_per_step), ("rows_per_step", train.rows_per_step)):
        if got is not None:
            yield Wrong(("train", key), f"got {got}; for {rows} set {key_of_step}")
    if train.accumulation != 1:
        yield Wrong(
            ("train", "accumulation"),
            f"got {train.accumulation}; a step is {key_of_step} {rows} ({a_step}) in as many micro-batches as "
            f"train.batch_tokens asks for; set {key_of_step}",
        )
    if train.neftune_alpha is not None:
        yield Wrong(
            ("train", "neftune_alpha"),
            f"got {train.neftune_alpha:g}; must be null for {rows}: it would add noise to every comparison",
        )
    if recipe.data.on_long_row == "split":
        yield Wrong(("data", "on_long_row"), f"got split, which is for plain text; {rows} take drop, cut or error")
    if not recipe.data.packing:
        yield Wrong(("data", "packing"), f"got false; {rows} are always laid end to end")
    if not recipe.data.train_empty_thoughts:
        yield Wrong(("data", "train_empty_thoughts"), f"got false; of {rows} the whole answer counts")
    if lora and lora.dropout:
        yield Wrong(
            ("model", "lora", "dropout"),
            f"got {lora.dropout:g}; must be 0 for {rows}: it would add noise to every comparison",
        )
